"""Guides that draw all global latents together, as one vector in whitened coordinates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ppl_vi.guides.unconstrained import Unconstrained, UnconstrainedGuide
from ppl_vi.randomness import forked_rng
from ppl_vi.starts import GuideStart, Mode, Whitening, pooled, shares

_DRAWS_FOR_QUANTILES = 4_096


class SampledNormal(dist.MultivariateNormal):
    """A Normal whose entropy is not taken in closed form.

    For one whose log-density is but a part of what is weighed: where another part is sampled, the
    noise of the two cancels.
    """

    def entropy(self) -> Tensor:
        raise NotImplementedError


class JointGuide(UnconstrainedGuide):
    """One distribution over the vector of all continuous latents outside the plates of minibatches.

    u = location + factor e,  e ~ distribution(),  z = u on its support

    u are the latents in unconstrained space, flattened and laid end to end in the order of the model;
    e has D numbers and one site, ``_<name>_latent``. ``location`` ``[D]`` and ``factor`` (``[D, D]``
    lower triangular, or ``[D]`` diagonal) are buffers, set where the posterior was found and not
    trained, so that an optimizer moves in units of the posterior's standard deviations.

    A subclass makes its parameters in ``_set_up``, and from these a distribution in ``distribution``.
    """

    num_searches: int = 1
    """From how many places modes are searched for; the whitening is that of all modes together."""

    location: Tensor
    factor: Tensor
    _modes: tuple[Mode, ...] = ()

    @abstractmethod
    def distribution(self) -> TorchDistribution:
        """The distribution of e: event ``[D]``, no batch; it starts near Normal(0, I)."""

    @abstractmethod
    def _set_up(self, dim: int, start: GuideStart) -> None:
        """Make the parameters, in the dtype and on the device of ``self.location``.

        Args:
            dim: D, at least 1.
            start: what the guide is built from.
        """

    def _stands_apart(self, latent: Unconstrained, rows: frozenset[str]) -> bool:
        return latent.subsampled or not rows.isdisjoint(frame.name for frame in latent.frames)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        whitening = self._whitening()
        if whitening is not None:
            self.register_buffer("location", whitening.location)
            self.register_buffer("factor", whitening.factor)
            self._set_up(len(whitening.location), self._start)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """What is loaded says whether the factor is triangular or diagonal."""
        found = state_dict.get(f"{prefix}factor")
        if found is not None and hasattr(self, "factor") and len(found) == len(self.factor):
            self.factor = self.factor.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def start_at(self, start: GuideStart) -> None:
        """Begin there; where more searches than one are asked for, after these."""
        if start.whitening is not None and start.search is not None and self.num_searches > 1:
            self._modes = start.search(self.num_searches)
            start = replace(start, whitening=pooled(self._modes))
        super().start_at(start)

    @torch.no_grad()
    def _modes_of_vector(self) -> tuple[Tensor, Tensor, Tensor]:
        """``[modes, D]``, ``[modes, D, D]`` lower triangular and ``[modes]``: where in e the modes
        are, how wide, and their shares of the mass."""
        whole = Whitening({}, self.location, self.factor)
        names = [name for name in self._latents if name not in self._apart]
        if not self._modes or not set(names) <= self._modes[0].whitening.sizes.keys():
            one = torch.ones_like(self.location)
            return torch.zeros_like(one)[None], one.diag()[None], one[:1]
        own = [mode.whitening.of(tuple(names)) for mode in self._modes]
        locations = [
            whole.whitened(mode.location.to(self.location) - self.location) for mode in own
        ]
        roots = [whole.whitened(mode.matrix().to(self.location)) for mode in own]
        return torch.stack(locations), torch.stack(roots), shares(self._modes).to(self.location)

    def _whitening(self) -> Whitening | None:
        """Of the latents drawn together; where nothing was found, a typical width around the start."""
        latents = {n: latent for n, latent in self._latents.items() if n not in self._apart}
        if not latents:
            return None
        location = torch.cat([latent.start.reshape(-1) for latent in latents.values()])
        found = self._start.whitening
        if found is None or not latents.keys() <= found.sizes.keys():
            sizes = {name: latent.start.numel() for name, latent in latents.items()}
            return Whitening(sizes, location, torch.full_like(location, self._start.init_scale))
        own = found.of(tuple(latents))
        return Whitening(own.sizes, own.location.to(location), own.factor.to(location))

    def unwhitened(self, e: Tensor) -> Tensor:
        """``[..., D]``: u, of e."""
        if self.factor.dim() == 1:
            return self.location + self.factor * e
        return self.location + (e.unsqueeze(-2) @ self.factor.mT).squeeze(-2)

    def _draw_vector(self) -> Tensor:
        """``[..., D]``: a draw of e, from sites that are all auxiliary."""
        return self._auxiliary("latent", self.distribution())

    def _auxiliary(self, name: str, distribution: TorchDistribution) -> Tensor:
        """A draw at a site of the guide's own."""
        site = f"_{self._pyro_name}_{name}"
        drawn: Tensor = pyro.sample(site, distribution, infer={"is_auxiliary": True})
        return drawn

    def _draw_together(self) -> dict[str, tuple[Tensor, Tensor]]:
        return self._unpacked(self.unwhitened(self._draw_vector()), self._log_volume())

    def _log_volume(self) -> Tensor:
        """``[D]``: log |de / du| of each number."""
        diagonal = self.factor if self.factor.dim() == 1 else self.factor.diagonal()
        return -diagonal.log()

    def _unpacked(self, u: Tensor, log_volume: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """``[..., *plates, *event]`` of u, by site, and ``[*plates, *event]`` of the volume."""
        found, end = {}, 0
        for name, latent in self._latents.items():
            if name in self._apart:
                continue
            shape, begin = latent.start.shape, end
            end += prod(shape)
            # Particles stand left of all plates, in dimensions of size 1 of the vector's own batch.
            batch = (*u.shape[:-1], *(1,) * latent.event_dim)
            laid_out = broadcast_shape(shape, batch)
            own = log_volume[begin:end].reshape(shape)
            found[name] = u[..., begin:end].reshape(laid_out), own
        return found

    def _draws(self, count: int) -> Tensor:
        """``[count, D]`` of e."""
        draws: Tensor = self.distribution().sample((count,))
        return draws

    def _quantiles_of_vector(self, probabilities: Tensor) -> Tensor:
        """``[quantiles, D]`` of u; of a sample of fixed size, unless a subclass knows them exactly."""
        with forked_rng(seed=0):
            draws = self.unwhitened(self._draws(_DRAWS_FOR_QUANTILES))
        return torch.quantile(draws, probabilities, dim=0)

    def _quantiles_together(self, probabilities: Tensor) -> dict[str, Tensor]:
        if not hasattr(self, "location"):
            return {}
        rows = self._quantiles_of_vector(probabilities)
        each = [self._unpacked(row, torch.zeros_like(row)) for row in rows]
        return {name: torch.stack([one[name][0] for one in each]) for name in each[0]}
