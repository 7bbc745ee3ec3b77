"""Expected log-densities of what is a function of a Gaussian."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ppl_vi.conjugacy.densities import certain, density, expected_log_density, summed


@density("LogNormal")
def _log_normal(distribution: Any, value: Any, events: int) -> Tensor:
    """E log N(log v | m, s) - log v."""
    log = certain(value, "value").log()
    return summed(expected_log_density(distribution.base_dist, log) - log, distribution, events)


@density("HalfNormal")
def _half_normal(distribution: Any, value: Any, events: int) -> Tensor:
    """E log N(v | 0, s) + log 2."""
    found = expected_log_density(distribution.base_dist, certain(value, "value"))
    return summed(found + math.log(2.0), distribution, events)
