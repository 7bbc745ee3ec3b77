"""Expected log-densities of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import torch
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
from ppl_vi.conjugacy.sums import broadcast_but_last, compact, grows, summed_product
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
        return _rows_against(y.mean, m, tau, constant, distribution, events)
    difference = y.plus(m, times=-1.0)
    squares = difference.mean.square() + difference.variance
    return summed(constant - 0.5 * tau * squares, distribution, events)


def _rows_against(
    data: Tensor, m: Multilinear, tau: Tensor, constant: Tensor, distribution: Any, events: int
) -> Tensor:
    """Rows against components: products of matrices, never an entry for each pair and dimension."""
    center = _center(data, m.mean)
    data, mean = data - center, m.mean - center
    second = mean.square() + m.variance
    if grows(tau, mean):  # each row has a precision of its own
        cross = _paired_sum((tau * data, -0.5 * tau), (mean, second), events)
        own = constant - 0.5 * tau * data.square()
    else:
        cross = _paired_sum((data.square(), data), (-0.5 * tau, tau * mean), events)
        own = constant - 0.5 * tau * second
    return cross + summed(own, distribution, events)


def _paired_sum(
    features: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], events: int
) -> Tensor:
    """The sum of both products over the event, as one product."""
    one, other = (torch.stack(torch.broadcast_tensors(*pair), -1) for pair in (weights, features))
    return summed_product(one, other, events + 1)


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
        cross = _quadratic(data, precision, (precision @ mean.unsqueeze(-1)).squeeze(-1))
        own = constant - 0.5 * (precision * second).sum((-2, -1))
        return summed(cross + own, distribution, events)
    difference = y.plus(m, times=-1.0)
    second = difference.mean.unsqueeze(-1) * difference.mean.unsqueeze(-2) + difference.covariance
    return summed(constant - 0.5 * (precision * second).sum((-2, -1)), distribution, events)


def _quadratic(data: Tensor, precision: Tensor, weighted: Tensor) -> Tensor:
    """dᵀ Λ m - ½ dᵀ Λ d of rows d, from ``weighted``, Λ m; each pair of entries is met once."""
    dimension = data.shape[-1]
    row, column = torch.triu_indices(dimension, dimension, device=data.device)
    times = -0.5 - 0.5 * (row != column).to(data)
    pairs = data[..., row] * data[..., column]
    features = torch.cat([pairs, data], -1)
    weights = torch.cat(broadcast_but_last(times * precision[..., row, column], weighted), -1)
    return summed_product(weights, features, 1)


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
