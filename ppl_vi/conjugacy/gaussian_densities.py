"""Expected log-densities of Gaussians."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ppl_vi.conjugacy.densities import (
    density,
    gaussian,
    lost,
    mean_of,
    positive,
    summed,
)
from ppl_vi.conjugacy.gaussian import Multilinear
from ppl_vi.conjugacy.matrices import PositiveDefinite, inverse_of
from ppl_vi.conjugacy.positive import Positive
from ppl_vi.conjugacy.sums import compact, grows, summed_product
from ppl_vi.conjugacy.values import NotConjugateError, Uncertain


@density("Normal")
def _normal(distribution: Any, value: Any, events: int) -> Tensor:
    """½ E log τ - ½ log 2π - ½ E τ E (v - m)²."""
    y, m = gaussian(value, "value"), gaussian(distribution.loc, "loc").compact()
    precision = _precision(distribution).compact()
    tau = mean_of(precision, "precision (scale ** -2)")
    constant = 0.5 * (precision.log - math.log(2 * math.pi))
    _apart(y, m)
    if not y.sites and grows(y.mean, m.mean, tau):
        # Rows against components: products of matrices, never an entry for each pair and dimension.
        center = _center(y.mean, m.mean)
        data, mean = y.mean - center, m.mean - center
        squares = summed_product(-0.5 * tau, data.square(), events)
        cross = summed_product(tau * mean, data, events)
        spread = _with_carried(tau * (mean.square() + m.variance), m, precision)
        own = constant - 0.5 * spread
        return squares + cross + summed(own, distribution, events)
    difference = y.plus(m, times=-1.0)
    spread = tau * (difference.mean.square() + difference.variance)
    spread = _with_carried(spread, difference, precision)
    return summed(constant - 0.5 * spread, distribution, events)


@density("MultivariateNormal")
def _multivariate_normal(distribution: Any, value: Any, events: int) -> Tensor:
    """½ E log |Λ| - ½ D log 2π - ½ tr E Λ E (v - m)(v - m)ᵀ."""
    y, m = gaussian(value, "value"), gaussian(distribution.loc, "loc").compact(keep=1)
    _apart(y, m)
    law = _precision_matrix(distribution)
    precision, dimension = compact(law.mean, keep=2), law.mean.shape[-1]
    constant = 0.5 * (compact(law.log_determinant) - dimension * math.log(2 * math.pi))
    if not y.sites and grows(y.mean, m.mean):
        center = _center(y.mean, m.mean)
        data, mean = y.mean - center, m.mean - center
        second = mean.unsqueeze(-1) * mean.unsqueeze(-2) + m.covariance
        outer = data.unsqueeze(-1) * data.unsqueeze(-2)
        squares = summed_product(-0.5 * precision, outer, 2)
        cross = summed_product((precision @ mean.unsqueeze(-1)).squeeze(-1), data, 1)
        spread = _with_carried((precision * second).sum((-2, -1)), m, law, 1)
        own = constant - 0.5 * spread
        return summed(squares + cross + own, distribution, events)
    difference = y.plus(m, times=-1.0)
    second = difference.mean.unsqueeze(-1) * difference.mean.unsqueeze(-2) + difference.covariance
    spread = _with_carried((precision * second).sum((-2, -1)), difference, law, 1)
    return summed(constant - 0.5 * spread, distribution, events)


def _with_carried(
    spread: Tensor, law: Multilinear, precision: Positive | PositiveDefinite, events: int = 0
) -> Tensor:
    """E τ (v - m)², with what τ itself carries: E τ (ε / √τ)² is one."""
    for by, squares in law.carried.items():
        multiple = precision.divided(by)
        if multiple is None:
            names = " times ".join(f"'{site}'" for site in by)
            raise NotConjugateError(f"its precision is no multiple of {names}")
        squares = squares.sum(-1) if events else squares
        spread = spread + compact(multiple) * squares
    return spread


def precision_of(distribution: Any) -> Positive | PositiveDefinite:
    """The law of the precision of a Normal or a MultivariateNormal."""
    if type(distribution).__name__ == "Normal":
        return _precision(distribution)
    return _precision_matrix(distribution)


def _precision(distribution: Any) -> Positive:
    return positive(distribution.scale, "scale").to_the(-2.0)


def _precision_matrix(distribution: Any) -> PositiveDefinite:
    given = vars(distribution)
    matrix = given.get("precision_matrix")
    if isinstance(matrix, Uncertain):
        lost(matrix, "precision_matrix")
        if not isinstance(matrix.law, PositiveDefinite):
            raise NotConjugateError("its precision_matrix must be a multiple of a Wishart latent")
        return matrix.law
    for name in ("covariance_matrix", "scale_tril"):
        if isinstance(given.get(name), Uncertain):
            raise NotConjugateError(f"its {name} is a latent; give it a precision_matrix")
    inverse, log_determinant = inverse_of(distribution._unbroadcasted_scale_tril)
    return PositiveDefinite(inverse, -log_determinant, {})


def _apart(value: Multilinear, loc: Multilinear) -> None:
    if value.sites & loc.sites:
        raise NotConjugateError("its loc depends on its own value")


def _center(data: Tensor, mean: Tensor) -> Tensor:
    """A point in the midst of the data, so that differences of large squares stay exact."""
    rows = compact(data)
    rank = max(data.dim(), mean.dim())
    shape = (1,) * (rank - mean.dim()) + tuple(mean.shape)
    rows = rows.reshape((1,) * (rank - rows.dim()) + tuple(rows.shape))
    others = [dim for dim in range(rank) if shape[dim] == 1 and rows.shape[dim] > 1]
    return rows.mean(others, keepdim=True) if others else rows.new_zeros(())
