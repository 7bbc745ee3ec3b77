"""Expected log-densities over positive numbers, probabilities and matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.densities import (
    certain,
    density,
    mean_of,
    needed,
    positive,
    summed,
)
from ppl_vi.conjugacy.matrices import PositiveDefinite, inverse_of
from ppl_vi.conjugacy.values import NotConjugateError, Uncertain


@density("Gamma", "Chi2")
def _gamma(distribution: Any, value: Any, events: int) -> Tensor:
    """a E log b - log Γ(a) + (a - 1) E log v - E b E v."""
    a = certain(distribution.concentration, "concentration")
    v, b = positive(value, "value"), positive(distribution.rate, "rate").compact()
    linear = mean_of(b, "rate") * mean_of(v, "value")
    return summed(a * b.log - a.lgamma() + (a - 1) * v.log - linear, distribution, events)


@density("Exponential")
def _exponential(distribution: Any, value: Any, events: int) -> Tensor:
    """E log b - E b E v."""
    v, b = positive(value, "value"), positive(distribution.rate, "rate").compact()
    return summed(b.log - mean_of(b, "rate") * mean_of(v, "value"), distribution, events)


@density("Pareto")
def _pareto(distribution: Any, value: Any, events: int) -> Tensor:
    """E log α - E α log(v / s) - log v."""
    v, s = certain(value, "value"), certain(distribution.scale, "scale")
    alpha = positive(distribution.alpha, "alpha").compact()
    linear = mean_of(alpha, "alpha") * (v / s).log()
    return summed(alpha.log - linear - v.log(), distribution, events)


@density("Laplace")
def _laplace(distribution: Any, value: Any, events: int) -> Tensor:
    """E log b - log 2 - E b |v - m|, with b = 1 / scale."""
    v, m = certain(value, "value"), certain(distribution.loc, "loc")
    b = positive(distribution.scale, "scale").compact().to_the(-1.0)
    linear = mean_of(b, "rate (1 / scale)") * (v - m).abs()
    return summed(b.log - math.log(2.0) - linear, distribution, events)


@density("InverseGamma")
def _inverse_gamma(distribution: Any, value: Any, events: int) -> Tensor:
    """a E log b - log Γ(a) - (a + 1) E log v - E b E 1/v."""
    a = certain(distribution.concentration, "concentration")
    v, b = positive(value, "value"), positive(distribution.rate, "rate").compact()
    inverse = mean_of(v.to_the(-1.0), "value (its inverse)")
    linear = mean_of(b, "rate") * inverse
    return summed(a * b.log - a.lgamma() - (a + 1) * v.log - linear, distribution, events)


@density("Beta")
def _beta(distribution: Any, value: Any, events: int) -> Tensor:
    """(a - 1) E log v + (b - 1) E log(1 - v) - log B(a, b)."""
    a = certain(distribution.concentration1, "concentration1")
    b = certain(distribution.concentration0, "concentration0")
    v = positive(value, "value")
    rest: Tensor = needed(v.log_complement, "value", "a Beta latent")
    normalizer = a.lgamma() + b.lgamma() - (a + b).lgamma()
    return summed((a - 1) * v.log + (b - 1) * rest - normalizer, distribution, events)


@density("Dirichlet")
def _dirichlet(distribution: Any, value: Any, events: int) -> Tensor:
    """Σ (a - 1) E log v - log B(a)."""
    a = certain(distribution.concentration, "concentration")
    v = positive(value, "value")
    normalizer = a.lgamma().sum(-1) - a.sum(-1).lgamma()
    return summed(((a - 1) * v.log).sum(-1) - normalizer, distribution, events)


@density("Wishart")
def _wishart(distribution: Any, value: Any, events: int) -> Tensor:
    """½ (n - D - 1) E log |V| - ½ tr S⁻¹ E V - ½ n D log 2 - ½ n log |S| - log Γ_D(n / 2)."""
    law = value.law if isinstance(value, Uncertain) else None
    if not isinstance(law, PositiveDefinite):
        raise NotConjugateError("its value must be a Wishart latent")
    n, root = certain(distribution.df, "df"), distribution._unbroadcasted_scale_tril
    dimension = root.shape[-1]
    inverse, log_scale = inverse_of(root)
    found = (
        0.5 * (n - dimension - 1) * law.log_determinant
        - 0.5 * (inverse * law.mean).sum((-2, -1))
        - 0.5 * n * (dimension * math.log(2.0) + log_scale)
        - torch.special.multigammaln(n / 2, dimension)
    )
    return summed(found, distribution, events)
