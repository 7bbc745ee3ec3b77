"""Expected log-densities of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from ppl_vi.conjugacy.gaussian import Multilinear, Sites
from ppl_vi.conjugacy.matrices import PositiveDefinite, inverse_of, number_and_matrix
from ppl_vi.conjugacy.positive import Positive
from ppl_vi.conjugacy.sums import broadcast_but_last, compact, grows, summed_product
from ppl_vi.conjugacy.values import NotConjugateError, Uncertain


@density("Normal")
def _normal(distribution: Any, value: Any, events: int) -> Tensor:
    """½ E log τ - ½ log 2π - ½ E τ E (v - m)²."""
    y, m = gaussian(value, "value"), gaussian(distribution.loc, "loc").compact()
    precision = _precision(distribution)
    tau = mean_of(precision, "precision (scale ** -2)")
    constant = 0.5 * (precision.log - math.log(2 * math.pi))
    _apart(y, m)
    if not y.sites and grows(y.mean, m.mean, tau):
        own, cross = _rows_against(y.mean, m, precision, tau, events)
        return cross + summed(constant + own, distribution, events)
    difference = y.plus(m, times=-1.0)
    spread = _summed(tau * difference.mean.square(), difference.variances, precision)
    return summed(constant - 0.5 * spread, distribution, events)


def _rows_against(
    data: Tensor, m: Multilinear, precision: Positive, tau: Tensor, events: int
) -> tuple[Tensor, Tensor]:
    """-½ E τ (y - m)² of rows against components, as what each of them adds and a product of matrices.

    There is never an entry for each pair and dimension.
    """
    center = _center(data, m.mean)
    data, mean = data - center, m.mean - center
    variances = m.variances
    if grows(tau, mean) and set(variances) <= {()}:  # each row has a precision of its own
        second = mean.square() + variances.get((), torch.zeros_like(mean))
        cross = _paired_sum((tau * data, -0.5 * tau), (mean, second), events)
        return -0.5 * tau * data.square(), cross
    cross = _paired_sum((data.square(), data), (-0.5 * tau, tau * mean), events)
    return -0.5 * _summed(tau * mean.square(), variances, precision), cross


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
    law = _precision_matrix(distribution).compact()
    precision, dimension = law.mean, law.mean.shape[-1]
    constant = 0.5 * (law.log_determinant - dimension * math.log(2 * math.pi))
    if not y.sites and grows(y.mean, m.mean):
        center = _center(y.mean, m.mean)
        data, mean = y.mean - center, m.mean - center
        cross = _quadratic(data, precision, (precision @ mean.unsqueeze(-1)).squeeze(-1))
        second = mean.unsqueeze(-1) * mean.unsqueeze(-2)
        spread = _summed(precision * second, m.covariances, law).sum((-2, -1))
        return summed(cross + (constant - 0.5 * spread), distribution, events)
    difference = y.plus(m, times=-1.0)
    second = difference.mean.unsqueeze(-1) * difference.mean.unsqueeze(-2)
    spread = _summed(precision * second, difference.covariances, law).sum((-2, -1))
    return summed(constant - 0.5 * spread, distribution, events)


def _quadratic(data: Tensor, precision: Tensor, weighted: Tensor) -> Tensor:
    """dᵀ Λ m - ½ dᵀ Λ d of rows d, from ``weighted``, Λ m; each pair of entries is met once."""
    dimension = data.shape[-1]
    row, column = torch.triu_indices(dimension, dimension, device=data.device)
    times = -0.5 - 0.5 * (row != column).to(data)
    pairs = data[..., row] * data[..., column]
    features = torch.cat([pairs, data], -1)
    weights = torch.cat(broadcast_but_last(times * precision[..., row, column], weighted), -1)
    return summed_product(weights, features, 1)


def _summed(
    total: Tensor, variances: Mapping[Sites, Tensor], precision: Positive | PositiveDefinite
) -> Tensor:
    """E τ (v - m)², from that of the means; what τ carries has it divided out: E τ (ε / √τ)² is 1."""
    for by, variance in variances.items():
        multiple = precision.divided(by)
        if multiple is None:
            names = " times ".join(f"'{site}'" for site in by)
            raise NotConjugateError(f"its precision is no multiple of {names}")
        total = total + multiple * variance
    return total


def precision_of(distribution: Any) -> Positive | PositiveDefinite:
    """The law of the precision of a Normal or a MultivariateNormal."""
    if type(distribution).__name__ == "Normal":
        return _precision(distribution)
    return _precision_matrix(distribution)


def _precision(distribution: Any) -> Positive:
    return positive(distribution.scale, "scale").compact().to_the(-2.0)


_EXPONENTS = {"precision_matrix": 1.0, "covariance_matrix": -1.0, "scale_tril": -2.0}
"""Of a number in the precision that a matrix is multiplied by in a parameter."""


def _precision_matrix(distribution: Any) -> PositiveDefinite:
    """The law of Λ: a multiple of a Wishart latent, or an uncertain number times a certain matrix."""
    for name, exponent in _EXPONENTS.items():
        given = vars(distribution).get(name)
        if not isinstance(given, Uncertain):
            continue
        lost(given, name)
        if isinstance(given.law, PositiveDefinite) and exponent == 1:
            return given.law
        if not isinstance(given.law, Positive):
            raise NotConjugateError(
                f"its {name} must be a number times a certain matrix; of a Wishart latent, give it a "
                f"multiple as precision_matrix"
            )
        number, matrix = number_and_matrix(given.law.compact(keep=2), name)
        if exponent != 1:
            root = matrix if exponent == -2 else torch.linalg.cholesky(matrix)
            matrix = torch.cholesky_inverse(root)
        return PositiveDefinite.of(number.to_the(exponent), matrix)
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
