"""Expected log-densities of counts and categories."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppl_vi.conjugacy.densities import (
    certain,
    density,
    mean_of,
    needed,
    positive,
    summed,
)
from ppl_vi.conjugacy.sums import compact, summed_product
from ppl_vi.conjugacy.taking import taken


@density("Poisson")
def _poisson(distribution: Any, value: Any, events: int) -> Tensor:
    """v E log r - E r - log v!."""
    v, r = certain(value, "value"), positive(distribution.rate, "rate").compact()
    return summed(v * r.log - mean_of(r, "rate") - (v + 1).lgamma(), distribution, events)


@density("Categorical")
def _categorical(distribution: Any, value: Any, events: int) -> Tensor:
    """E log p_v."""
    places = compact(certain(value, "value").long())
    logs = positive(distribution.probs, "probs").compact(keep=1).log
    return summed(taken(logs, places), distribution, events)


@density("IndexedCategorical")
def _indexed_categorical(distribution: Any, value: Any, events: int) -> Tensor:
    """E log p_(row, v)."""
    rows, places = distribution.rows, compact(certain(value, "value").long())
    rows = compact(certain(rows, "rows").long())
    logs = positive(distribution.probs, "probs").log
    wide = any(min(sizes) > 1 for sizes in zip(rows.shape[::-1], places.shape[::-1], strict=False))
    found = logs[rows, places] if wide else taken(logs[rows], places)
    return summed(found, distribution, events)


@density("OneHotCategorical")
def _one_hot(distribution: Any, value: Any, events: int) -> Tensor:
    """Σ v E log p."""
    logs = positive(distribution.probs, "probs").compact(keep=1).log
    return summed((certain(value, "value") * logs).sum(-1), distribution, events)


@density("Multinomial")
def _multinomial(distribution: Any, value: Any, events: int) -> Tensor:
    """log n! + Σ (v E log p - log v!)."""
    v, logs = certain(value, "value"), positive(distribution.probs, "probs").compact(keep=1).log
    coefficient = (v.sum(-1) + 1).lgamma() - (v + 1).lgamma().sum(-1)
    return summed(coefficient + summed_product(logs, v, 1), distribution, events)


@density("Bernoulli")
def _bernoulli(distribution: Any, value: Any, events: int) -> Tensor:
    """v E log p + (1 - v) E log(1 - p)."""
    return _trials(distribution, certain(value, "value"), 1.0, events)


@density("Binomial")
def _binomial(distribution: Any, value: Any, events: int) -> Tensor:
    """log (n over v) + v E log p + (n - v) E log(1 - p)."""
    v, n = certain(value, "value"), certain(distribution.total_count, "total_count")
    coefficient = (n + 1).lgamma() - (v + 1).lgamma() - (n - v + 1).lgamma()
    return _trials(distribution, v, n, events) + summed(coefficient, distribution, events)


@density("Geometric")
def _geometric(distribution: Any, value: Any, events: int) -> Tensor:
    """E log p + v E log(1 - p), of v failures before the first success."""
    v = certain(value, "value")
    return _trials(distribution, v.new_ones(v.shape), v + 1, events)


@density("NegativeBinomial")
def _negative_binomial(distribution: Any, value: Any, events: int) -> Tensor:
    """log (v + r - 1 over v) + v E log p + r E log(1 - p), of v successes before r failures."""
    v, r = certain(value, "value"), certain(distribution.total_count, "total_count")
    coefficient = (v + r).lgamma() - (v + 1).lgamma() - r.lgamma()
    return _trials(distribution, v, v + r, events) + summed(coefficient, distribution, events)


def _trials(distribution: Any, v: Tensor, n: Tensor | float, events: int) -> Tensor:
    p = positive(distribution.probs, "probs").compact()
    rest: Tensor = needed(p.log_complement, "probs", "a Beta latent, or one minus it")
    return summed_product(p.log, v, events) + summed_product(rest, n - v, events)
