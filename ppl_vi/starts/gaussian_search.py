"""The best Gaussian in unconstrained space, found by damped Newton steps on the ELBO."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.randomness import forked_rng
from ppl_vi.starts.log_joint import LogJoint

_FEWEST_PAIRS = 32
_ITERATIONS = 60
_GAIN = 1e-3
_AT_REST = 0.2
_FLATTEST = 0.01
"""In one step no direction is widened by more than one over the square root of it."""
_STEPS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


class Gaussian(NamedTuple):
    """Normal(location, factor factor^T), and its ELBO on common draws.

    ``location`` is ``[D]``, ``factor`` ``[D, D]`` and lower triangular. ``settled`` tells that the
    gradient and the curvature are those of a maximum.
    """

    location: Tensor
    factor: Tensor
    elbo: float = -math.inf
    settled: bool = False


def search(density: LogJoint, location: Tensor, widths: Tensor) -> Gaussian:
    """Climb the ELBO from independent Normals, in coordinates that each step whitens anew.

        S⁻¹ <- (1 - t) S⁻¹ - t E_q[∇∇ log p],  m <- m + t S E_q[∇ log p]

    where expected curvature is the change of the gradient from one standard deviation on one side to
    one on the other, along each axis. So the widths are those of the mass, and a spike that has none
    is passed by; no scale is too small or too large, and correlation does no harm. The gradient is a
    mean over common antithetic draws, on which no step may lower the ELBO.

    Args:
        density: what to approach.
        location: ``[D]``, where to begin.
        widths: ``[D]``, standard deviations to begin with.

    Source: Opper and Archambeau (2009); Khan and Lin (2017), for the damping.
    """
    draws = _common_draws(len(location)).to(location.device)
    best = _judged(density, Gaussian(location, widths.diag()), draws)
    for _ in range(_ITERATIONS):
        last, best = best, _stepped(density, best, draws)
        if not best.elbo - last.elbo > _GAIN:
            return best
    return best


def _common_draws(dim: int) -> Tensor:
    """``[2 pairs, D]``: antithetic, with covariance I, so that a Gaussian's ELBO has no noise."""
    pairs = max(_FEWEST_PAIRS, dim)
    with forked_rng(seed=0):
        half = torch.linalg.qr(torch.randn(pairs, dim, dtype=torch.float64)).Q * pairs**0.5
    return torch.cat([half, -half])


def _judged(density: LogJoint, gaussian: Gaussian, draws: Tensor) -> Gaussian:
    location, factor, *_ = gaussian
    values = density.values(location + draws @ factor.mT)
    elbo = values.mean() + factor.diagonal().log().sum()
    return gaussian._replace(elbo=elbo.nan_to_num(nan=-torch.inf, posinf=-torch.inf).item())


def _stepped(density: LogJoint, gaussian: Gaussian, draws: Tensor) -> Gaussian:
    """A step that raises the ELBO, or none."""
    location, factor, *_ = gaussian
    axes = factor.mT
    points = torch.cat([location + axes, location - axes, location + draws @ axes])
    # In coordinates where q is the standard Normal.
    gradients = density.gradients(points) @ factor
    above, below, inside = gradients.tensor_split([len(axes), 2 * len(axes)])
    slope = inside.mean(0)
    curvature = (below - above) / 2
    curvature = (curvature + curvature.mT) / 2
    if not (curvature.isfinite().all() and slope.isfinite().all()):
        return gaussian
    precision, directions = torch.linalg.eigh(curvature)
    unrest = torch.cat([slope, precision - 1]).abs().max()
    settled = bool(unrest < _AT_REST)
    precision = precision.clamp(min=_FLATTEST)
    for step in _STEPS:
        own = 1 + step * (precision - 1)
        move = step * directions @ ((slope @ directions) / own)
        root = factor @ (directions * own.rsqrt())
        upper = torch.linalg.qr(root.mT, mode="r").R
        tried = Gaussian(location + factor @ move, upper.mT * upper.diagonal().sign())
        tried = _judged(density, tried, draws)
        if tried.elbo > gaussian.elbo:
            return tried._replace(settled=settled)
    return gaussian._replace(settled=settled)
