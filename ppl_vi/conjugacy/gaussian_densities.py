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
from ppl_vi.conjugacy.sums import compact, grows, summed_product
from ppl_vi.conjugacy.values import NotConjugateError, Uncertain


@density("Normal")
def _normal(distribution: Any, value: Any, events: int) -> Tensor:
    """½ E log τ - ½ log 2π - ½ E τ E (v - m)²."""
    y, m = gaussian(value, "value"), gaussian(distribution.loc, "loc").compact()
    precision = positive(distribution.scale, "scale").compact().to_the(-2.0)
    tau = mean_of(precision, "precision (scale ** -2)")
    constant = 0.5 * (precision.log - math.log(2 * math.pi))
    _apart(y, m)
    if not y.sites and grows(y.mean, m.mean, tau):
        # Rows against components: products of matrices, never an entry for each pair and dimension.
        center = _center(y.mean, m.mean)
        data, mean = y.mean - center, m.mean - center
        squares = summed_product(-0.5 * tau, data.square(), events)
        cross = summed_product(tau * mean, data, events)
        own = constant - 0.5 * tau * (mean.square() + m.variance)
        return squares + cross + summed(own, distribution, events)
    difference = y.plus(m, times=-1.0)
    squares = difference.mean.square() + difference.variance
    return summed(constant - 0.5 * tau * squares, distribution, events)


@density("MultivariateNormal")
def _multivariate_normal(distribution: Any, value: Any, events: int) -> Tensor:
    """½ E log |Λ| - ½ D log 2π - ½ tr E Λ E (v - m)(v - m)ᵀ."""
    y, m = gaussian(value, "value"), gaussian(distribution.loc, "loc").compact(keep=1)
    _apart(y, m)
    precision, log_determinant = _precision_matrix(distribution)
    dimension = precision.shape[-1]
    constant = 0.5 * (log_determinant - dimension * math.log(2 * math.pi))
    if not y.sites and grows(y.mean, m.mean):
        center = _center(y.mean, m.mean)
        data, mean = y.mean - center, m.mean - center
        second = mean.unsqueeze(-1) * mean.unsqueeze(-2) + m.covariance
        outer = data.unsqueeze(-1) * data.unsqueeze(-2)
        squares = summed_product(-0.5 * precision, outer, 2)
        cross = summed_product((precision @ mean.unsqueeze(-1)).squeeze(-1), data, 1)
        own = constant - 0.5 * (precision * second).sum((-2, -1))
        return summed(squares + cross + own, distribution, events)
    difference = y.plus(m, times=-1.0)
    second = difference.mean.unsqueeze(-1) * difference.mean.unsqueeze(-2) + difference.covariance
    return summed(constant - 0.5 * (precision * second).sum((-2, -1)), distribution, events)


def _precision_matrix(distribution: Any) -> tuple[Tensor, Tensor]:
    """E Λ and E log |Λ|."""
    given = vars(distribution)
    matrix = given.get("precision_matrix")
    if isinstance(matrix, Uncertain):
        lost(matrix, "precision_matrix")
        if not isinstance(matrix.law, PositiveDefinite):
            raise NotConjugateError("its precision_matrix must be a Wishart latent")
        law = matrix.law
        return compact(law.mean, keep=2), compact(law.log_determinant)
    for name in ("covariance_matrix", "scale_tril"):
        if isinstance(given.get(name), Uncertain):
            raise NotConjugateError(f"its {name} is a latent; give it a precision_matrix")
    inverse, log_determinant = inverse_of(distribution._unbroadcasted_scale_tril)
    return inverse, -log_determinant


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
