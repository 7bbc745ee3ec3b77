"""Several places where a posterior has mass, and one Gaussian for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.starts.whitening import Whitening

_MOST_FOR_A_MATRIX = 1_000


@dataclass(frozen=True)
class Mode:
    """One place where a posterior has mass, as a Gaussian there knows it.

    Attributes:
        whitening: where it is and how wide.
        log_mass: an estimate of the log of its mass, up to a constant that all modes share.
    """

    whitening: Whitening
    log_mass: float

    def is_at(self, other: Mode) -> bool:
        """Whether both are the same place, to half a standard deviation."""
        away = self.whitening.location - other.whitening.location
        return bool(self.whitening.whitened(away).square().mean() < 0.25)


@torch.no_grad()
def shares(modes: Sequence[Mode]) -> Tensor:
    """``[modes]``: the part of the posterior's mass that each has."""
    like = modes[0].whitening.location
    return torch.tensor([mode.log_mass for mode in modes], dtype=torch.float64).softmax(0).to(like)


@torch.no_grad()
def pooled(modes: Sequence[Mode]) -> Whitening:
    """The whitening by the mean and the covariance of the mixture of all modes.

    Args:
        modes: at least one. Of more than 1,000 dimensions only the variances are pooled.
    """
    first = modes[0].whitening
    if len(modes) == 1:
        return first
    weights = shares(modes)
    locations = torch.stack([mode.whitening.location for mode in modes])
    center = weights @ locations
    away = locations - center
    if len(center) > _MOST_FOR_A_MATRIX:
        own = torch.stack([mode.whitening.variances() for mode in modes])
        return Whitening(first.sizes, center, (weights @ (own + away.square())).sqrt())
    spread = (weights.sqrt().unsqueeze(-1) * away).mT
    roots = [w.sqrt() * mode.whitening.matrix() for w, mode in zip(weights, modes, strict=True)]
    upper = torch.linalg.qr(torch.cat([spread, *roots], -1).mT, mode="r").R
    return Whitening(first.sizes, center, upper.mT * upper.diagonal().sign())
