"""The Gaussian factor of one latent, made from what a network gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ReshapeTransform, Transform

from ppl_vi.errors import GuideError
from ppl_vi.guides.refinement import Refinement
from ppl_vi.program import Latents, LatentSite, is_real


class GaussianFactor:
    """The Gaussian of a latent, in unconstrained space.

    Args:
        site: of the model.
        output: of the network.
        is_new: whether it has not been looked at on data of this shape.

    Raises:
        GuideError: the output is not what it should be.
    """

    def __init__(self, site: LatentSite, output: Any, is_new: bool) -> None:
        self.site = site
        self.batch = site.value.shape[: site.value.dim() - site.event_dim]
        event = site.value.shape[len(self.batch) :]
        self.transform: Transform = biject_to(site.support)
        self.event = torch.Size(self.transform.inverse_shape(event))
        plates = tuple(plate.size for plate in site.plates)
        size = self.event.numel()
        wanted, full = (*plates, *self.event), (*plates, size, size)
        found = _shapes(output)
        if found not in ([wanted, wanted], [wanted, full]):
            whole = f" (or {full}, a Cholesky factor)" if self.event else ""
            raise GuideError(
                f"site '{site.name}': the network should return (loc, scale) of shapes {wanted} and "
                f"{wanted}{whole}, but returned {_in_words(output)}. Change its last layer."
            )
        loc, scale = output
        self.full = found[1] != wanted
        if is_new:
            self._check(loc, scale)
        self.loc = loc.reshape(*self.batch, *self.event)
        self.scale = scale.reshape(*self.batch, *((size, size) if self.full else self.event))

    def _check(self, loc: Tensor, scale: Tensor) -> None:
        deviations = scale.diagonal(dim1=-2, dim2=-1) if self.full else scale
        if not (torch.isfinite(loc).all() and torch.isfinite(scale).all()):
            raise GuideError(
                f"site '{self.site.name}': the network's output is not finite. Scale the data, or "
                f"start the network with smaller weights."
            )
        if not (deviations > 0).all():
            raise GuideError(
                f"site '{self.site.name}': the network's scale is not positive. End it with "
                f"torch.nn.functional.softplus or torch.exp."
            )

    def refine(
        self,
        refinement: Refinement,
        log_joint: Callable[[Mapping[str, Tensor]], Tensor],
        others: Mapping[str, Tensor],
        known: Latents,
    ) -> None:
        """Take a few steps, for each particle of the other latents by itself.

        Args:
            refinement: how.
            log_joint: of the model.
            others: draws of the other latents, and row numbers of plates.
            known: the model's latents.
        """
        if self.full:
            raise GuideError(
                f"site '{self.site.name}': a refinement needs standard deviations, and the network "
                f"gives Cholesky factors. Leave refinement out, or let the network be diagonal."
            )
        sites = {site.name: site for site in known.sites if site.name != self.site.name}
        drawn = {name: value.detach() for name, value in others.items() if name in sites}
        rows = {name: value for name, value in others.items() if name not in sites}
        by_particle = {n: v.reshape(-1, *sites[n].value.shape) for n, v in drawn.items()}
        count = max(map(len, by_particle.values()), default=1)
        given = {n: v.expand(count, *v.shape[1:]) for n, v in by_particle.items()}

        def log_density(free: Tensor) -> Tensor:
            def one(own: Mapping[str, Tensor], value: Tensor) -> Tensor:
                return self._log_density(log_joint, {**rows, **own}, value)

            if not given:
                return one({}, free)
            every: Tensor = torch.vmap(one, randomness="same")(given, free)
            return every.sum()

        if not given:
            self.loc, self.scale = refinement(log_density, self.loc, self.scale, len(self.event))
            return
        shape = self.loc.shape
        start = self.loc.expand(count, *shape), self.scale.expand(count, *shape)
        refined = refinement(log_density, *start, len(self.event))
        if count > 1:  # particles stand left of all plates
            depth = max(v.dim() - sites[name].event_dim for name, v in drawn.items())
            shape = torch.Size([count, *(1,) * (depth - 1 - len(self.batch)), *shape])
        self.loc, self.scale = (each.reshape(shape) for each in refined)

    def _log_density(
        self,
        log_joint: Callable[[Mapping[str, Tensor]], Tensor],
        given: Mapping[str, Tensor],
        free: Tensor,
    ) -> Tensor:
        """The log joint density in unconstrained space, each row counted once."""
        times = prod(plate.full_size / plate.size for plate in self.site.plates)
        value = self.transform(free)
        volume = self.transform.log_abs_det_jacobian(free, value).sum()
        density: Tensor = log_joint({**given, self.site.name: value}) / times + volume
        return density

    @property
    def distribution(self) -> Any:
        """The factor on the latent's own support."""
        if self.full:
            base: Any = dist.MultivariateNormal(
                self.loc.flatten(len(self.batch)), scale_tril=self.scale
            )
            if len(self.event) > 1:
                shaped = ReshapeTransform(torch.Size([self.event.numel()]), self.event)
                base = dist.TransformedDistribution(base, [shaped])
        else:
            base = dist.Normal(self.loc, self.scale).to_event(len(self.event))
        if is_real(self.site.support):
            return base
        return _OnSupport(base, self.transform, self.site.support)


class _OnSupport(dist.TransformedDistribution):
    """A transformed Gaussian that knows its support: torch calls that of a chain the whole line."""

    def __init__(self, base: Any, transform: Transform, support: Any) -> None:
        self._given = base, transform, support
        super().__init__(base, [transform], validate_args=False)

    @property
    def support(self) -> Any:
        return self._given[2]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        base, transform, support = self._given
        return _OnSupport(base.expand(batch_shape), transform, support)


def _shapes(output: Any) -> list[tuple[int, ...]]:
    if not isinstance(output, (tuple, list)):
        return []
    return [tuple(part.shape) if isinstance(part, Tensor) else () for part in output]


def _in_words(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"one tensor of shape {tuple(output.shape)}"
    shapes = _shapes(output)
    return " and ".join(map(str, shapes)) if shapes else type(output).__name__
