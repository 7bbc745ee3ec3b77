"""A mode of a log density, by Newton's method."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_STEPS = 50
_SIZES = (1.0, 0.5, 0.2, 0.05, 0.01, 1e-3)
_FLATTEST = 1e-12
_LEVEL = 1e-4


class LogDensity(Protocol):
    """What is asked of a log density of ``[D]`` numbers."""

    def values(self, u: Tensor) -> Tensor: ...

    def gradients(self, u: Tensor) -> Tensor: ...

    def hessian(self, u: Tensor) -> Tensor: ...


class Mode(NamedTuple):
    """Where a search ended.

    Attributes:
        location: ``[D]``.
        slope: ``[D]``, the gradient there, Fᵀ ∇ log p.
        curvature: ``[D, D]``, minus the Hessian there, -Fᵀ ∇∇ log p F.
    """

    location: Tensor
    slope: Tensor
    curvature: Tensor

    def root(self) -> Tensor | None:
        """``[D, D]``: lower triangular, a root of the inverse curvature; None where this is no mode."""
        own, axes = torch.linalg.eigh(self.curvature)
        if not own.min() > _FLATTEST * max(1.0, own.max().item()):
            return None
        if not ((axes.mT @ self.slope).square() / own).sum() < _LEVEL:
            return None
        upper = torch.linalg.qr((axes * own.rsqrt()).mT, mode="r").R
        root: Tensor = upper.mT * upper.diagonal().sign()
        return root


def find_mode(density: LogDensity, u: Tensor, factor: Tensor) -> Mode:
    """A mode near a point, in units of a factor.

    Newton's steps, cut until the density rises; where it curves upward, it is taken to curve as much
    downward, so that saddles are left.

    Args:
        density: to be maximised.
        u: ``[D]``, where to begin.
        factor: ``[D, D]``, a root of the covariance as far as known, so that units do not matter.

    Source: Nocedal and Wright (2006), sections 3.3 and 3.4; Dauphin et al. (2014), for saddles.
    """
    value = density.values(u.unsqueeze(0))
    mode = _looked_at(density, u, factor)
    for _ in range(_STEPS):
        own, axes = torch.linalg.eigh(mode.curvature)
        move = axes @ ((axes.mT @ mode.slope) / own.abs().clamp(min=_FLATTEST))
        tried = mode.location + torch.tensor(_SIZES).to(u).unsqueeze(1) * (factor @ move)
        values = density.values(tried)
        best = int(values.argmax())
        if not values[best] > value:
            return mode
        value, mode = values[best], _looked_at(density, tried[best], factor)
    return mode


def _looked_at(density: LogDensity, u: Tensor, factor: Tensor) -> Mode:
    slope = factor.mT @ density.gradients(u.unsqueeze(0))[0]
    return Mode(u, slope, -factor.mT @ density.hessian(u) @ factor)
