"""A joint mode of the posterior, by L-BFGS from the guide's draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_vi.errors import ModelError
from ppl_vi.preparation import check_whole, structure_of
from ppl_vi.program import (
    LatentSite,
    Pair,
    align,
    draw_plainly,
    enumerable_sites,
    hide,
    is_real,
    latents_of,
    run_guide,
    run_model,
    squeezed,
)
from ppl_vi.randomness import forked_rng

Draws = dict[str, Tensor]
_ITERATIONS = 10_000
_TRIED, _DRAWS = 32, 1_000
_ELEMENTS_AT_ONCE = 5_000_000
_WORST = 1e300
_FLAT = {torch.float64: 1e-3, torch.float32: 3e-2}
"""The steepest slope of a maximum, in nats per posterior standard deviation."""
_SMALL = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Likewise, the slope that the search stops at."""
_LOST = 0.5
"""How far rounding may move an unconstrained number; beyond, its site is on the edge of the support."""
_FAR_REAL, _FAR = 1e6, 80.0
"""Standard deviations, of latents on the whole line; unconstrained numbers, of others."""


class _EscapeError(Exception):
    """The density rises towards the edge of a support, or for ever."""

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.site = site


def joint_mode(pair: Pair) -> Draws:
    """A joint mode of the continuous latents, by site on their own supports; inside fitted parameters.

    Args:
        pair: the model, the guide and their arguments, with all rows.

    Raises:
        ModelError: no maximum was found, a discrete latent cannot be summed out, or the model takes a
            subsample by itself.
    """
    names = enumerable_sites(pair.model, pair.args, pair.kwargs)
    pair = pair._replace(guide=hide(pair.guide, names)) if names else pair
    with forked_rng(seed=0), pyro.validation_enabled(False):
        return _Climb(pair).top()


class _Climb:
    """The log joint density as a function of numbers x: unconstrained ones are u = start + width x."""

    def __init__(self, pair: Pair) -> None:
        self._pair, self._structure = pair, structure_of(pair)
        check_whole(self._structure, (), "a mode")
        with torch.no_grad():
            drawn = run_guide(self._structure, pair, draw_plainly, _TRIED).values
            density = self._log_joint(drawn, _TRIED).nan_to_num(nan=-torch.inf)
            self._best = self._structure.single(drawn, int(density.argmax()))
            self._latents = self._latents_at(self._best)
            inner = {s.name: biject_to(s.support).inv(s.value).shape for s in self._latents}
            self._shapes, self._sizes = inner, [shape.numel() for shape in inner.values()]
            self._start = self._numbers(self._best)
            self._width = self._widths()
            of_sites = [is_real(site.support) for site in self._latents]
            sizes = torch.tensor(self._sizes)
            self._real = torch.tensor(of_sites).repeat_interleave(sizes).to(self._start.device)
            deviations = self._width.reshape(len(self._start), -1).norm(dim=1)
            self._farthest = torch.where(self._real, _FAR_REAL * deviations, _FAR)

    def top(self) -> Draws:
        """The values at the maximum."""
        from scipy.optimize import minimize  # heavy, and not every fit needs it

        small = _SMALL.get(self._start.dtype, 1e-4)
        options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 0.0, "gtol": small}
        zero = np.zeros(len(self._start))
        try:
            found = minimize(self._loss, zero, jac=True, method="L-BFGS-B", options=options)
        except _EscapeError as escaped:
            raise _no_maximum(escaped.site) from None
        if not found.fun < _WORST or np.abs(found.jac).max() > _FLAT.get(self._start.dtype, 3e-2):
            raise _no_maximum(self._steepest(found))
        with torch.no_grad():
            values = self._values(self._moved(torch.as_tensor(found.x).to(self._start)))
        return {n: squeezed(self._structure, n, v[None])[0].clone() for n, v in values.items()}

    def _loss(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log joint density on the latents' own supports, and its gradient."""
        with torch.enable_grad():
            position = torch.as_tensor(x).to(self._start).requires_grad_()
            values = self._values(self._moved(position))
            every = {n: v[None] if n in self._structure.sites else v for n, v in self._best.items()}
            every |= {n: v[None] for n, v in values.items()}
            loss = -self._log_joint(every, 1)[0]
            (gradient,) = torch.autograd.grad(loss, position)
        slope = gradient.double().cpu().numpy()
        if not np.isfinite(loss.item()) or not np.isfinite(slope).all():
            return _WORST, np.zeros_like(slope)  # the line search turns back from here
        return loss.item(), slope

    def _moved(self, x: Tensor) -> Tensor:
        """``[D]``: the unconstrained numbers at x.

        Raises:
            _EscapeError: one is very far off.
        """
        move = self._width @ x if self._width.dim() == 2 else self._width * x
        if (far := move.detach().abs() > self._farthest).any():
            raise _EscapeError(self._site_of(int(far.nonzero()[0])))
        return self._start + move

    def _steepest(self, found: Any) -> str:
        """The site to name: one that went towards an edge, else the one with the steepest slope."""
        width = self._width.double().cpu().numpy()
        move = width @ found.x if width.ndim == 2 else width * found.x
        edge = np.where(self._real.cpu().numpy(), 0.0, np.abs(move))
        worst = edge if edge.max() > 1 else np.abs(found.jac)
        return self._site_of(int(worst.argmax()))

    def _site_of(self, number: int) -> str:
        names = [name for name, shape in self._shapes.items() for _ in range(shape.numel())]
        return names[number]

    def _log_joint(self, values: Mapping[str, Tensor], count: int) -> Tensor:
        """``[count]``: log p(x, z), discrete latents summed out."""
        factors = run_model(self._structure, self._pair, values, count)
        each = [align(factor.signed, factor.plates, ()) for factor in factors]
        return torch.stack(torch.broadcast_tensors(*each)).sum(0)

    def _latents_at(self, values: Mapping[str, Tensor]) -> list[LatentSite]:
        """The continuous latents, with their supports at these values."""
        own = self._structure.of_kind("latent")
        known = {**self._structure.row_numbers(values), **{name: values[name] for name in own}}
        found = [s for s in latents_of(self._pair, draw_plainly, known).sites if s.name in own]
        if not found:
            raise ModelError(
                "mode: the model has no continuous latent, and a mode is sought along gradients. Use "
                "sample() for discrete latents."
            )
        for site in found:
            if site.support.is_discrete:
                raise ModelError(
                    f"mode: site '{site.name}' is discrete with infinitely many values, which can "
                    f"neither be summed out nor followed along a gradient. Observe it with "
                    f"conditional(), and ask for the mode of the rest."
                )
        return found

    def _numbers(self, values: Mapping[str, Tensor]) -> Tensor:
        """``[..., D]`` of ``[..., *shape]``, by the supports at the best draw."""
        parts = []
        for site in self._latents:
            value = values[site.name]
            own = biject_to(site.support).inv(value)
            parts.append(own.reshape(*value.shape[: value.dim() - site.value.dim()], -1))
        return torch.cat(parts, -1)

    def _widths(self) -> Tensor:
        """``[D]`` or ``[D, D]``: about the square root of the posterior's covariance, by draws."""
        count = min(_DRAWS, max(_TRIED, _ELEMENTS_AT_ONCE // len(self._start)))
        numbers = self._numbers(run_guide(self._structure, self._pair, draw_plainly, count).values)
        centered = (numbers - numbers.mean(0)) / (count - 1) ** 0.5
        widths = centered.norm(dim=0)
        # A guide that is a point, to rounding, tells nothing of the posterior's width.
        least = 100 * torch.finfo(widths.dtype).eps * numbers.abs().amax(0)
        told = widths.isfinite() & (widths > least)
        widths = torch.where(told, widths, torch.ones_like(widths))
        if count < 3 * len(widths) or not told.all():
            return widths
        upper = torch.linalg.qr(centered / widths, mode="r").R
        return widths[:, None] * upper.mT if upper.diagonal().all() else widths

    def _values(self, position: Tensor) -> Draws:
        """The latents' values at unconstrained numbers ``[D]``.

        Raises:
            _EscapeError: one is on the edge of its support, to rounding.
        """
        parts = dict(zip(self._shapes, position.split(self._sizes), strict=True))
        values: Draws = {}

        def draw(name: str, distribution: Any) -> Tensor:
            if name not in parts:
                return draw_plainly(name, distribution)
            own = parts[name].reshape(self._shapes[name])
            transform = biject_to(distribution.support)
            value: Tensor = transform(own)
            with torch.no_grad():
                if not (transform.inv(value) - own).abs().max() < _LOST:
                    raise _EscapeError(name)
            values[name] = value
            return value

        latents_of(self._pair, draw, self._structure.row_numbers(self._best))
        return values


def _no_maximum(site: str) -> ModelError:
    return ModelError(
        f"mode: no maximum was found: the posterior density still rises along site '{site}'. Where it "
        f"has no bound (a scale that may go to 0, a concentration below 1) there is no joint mode: use "
        f"the mean of marginal('{site}'), or a prior that vanishes at the edge."
    )
