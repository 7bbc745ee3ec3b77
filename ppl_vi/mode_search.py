"""A mode of a log density, by Newton's method."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_STEPS = 100
_SIZES = (1.0, 0.5, 0.2, 0.05, 0.01, 1e-3)
_FLATTEST = 1e-6
_SMALL_MOVE = 1e-8


class LogDensity(Protocol):
    """What is asked of a log density of ``[D]`` numbers."""

    def values(self, u: Tensor) -> Tensor: ...

    def gradients(self, u: Tensor) -> Tensor: ...

    def hessian(self, u: Tensor) -> Tensor: ...


def find_mode(density: LogDensity, u: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """A mode near a point, and minus the Hessian there, in units of a factor.

    Newton's steps, cut until the density rises; where it curves upward, it is taken to curve as much
    downward, so that saddles are left.

    Args:
        density: to be maximised.
        u: ``[D]``, where to begin.
        factor: ``[D, D]``, a root of the covariance as far as known, so that units do not matter.

    Returns:
        ``[D]``, the mode, and ``[D, D]``, the curvature -Fᵀ ∇∇ log p F.

    Source: Nocedal and Wright (2006), sections 3.3 and 3.4; Dauphin et al. (2014), for saddles.
    """
    value = density.values(u.unsqueeze(0))
    for _ in range(_STEPS):
        own, axes = torch.linalg.eigh(_curvature(density, u, factor))
        slope = factor.mT @ density.gradients(u.unsqueeze(0))[0]
        move = axes @ ((axes.mT @ slope) / own.abs().clamp(min=_FLATTEST))
        tried = u + torch.tensor(_SIZES).to(u).unsqueeze(1) * (factor @ move)
        values = density.values(tried)
        best = int(values.argmax())
        if not values[best] > value or move.abs().max() < _SMALL_MOVE:
            break
        u, value = tried[best], values[best]
    return u, _curvature(density, u, factor)


def _curvature(density: LogDensity, u: Tensor, factor: Tensor) -> Tensor:
    return -factor.mT @ density.hessian(u) @ factor
