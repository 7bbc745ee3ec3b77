"""Values of sites that the prior alone tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_median, init_to_sample
from torch import Tensor
from torch.distributions import biject_to

from ppl_vi.program import feasible_value, is_improper

_DRAWS_FOR_A_MEDIAN = 1_001


def median(site: Any) -> Tensor:
    """The median of a site's prior; a flat one has none."""
    if is_improper(site["fn"]):
        return feasible_value(site["fn"])
    value: Tensor = init_to_median(site, num_samples=_DRAWS_FOR_A_MEDIAN)
    return value


def drawn(site: Any) -> Tensor:
    """A draw from a site's prior, or near where a flat one starts."""
    if not is_improper(site["fn"]):
        value: Tensor = init_to_sample(site)
        return value
    to_support = biject_to(site["fn"].support)
    unconstrained = to_support.inv(feasible_value(site["fn"]))
    drawn: Tensor = to_support(unconstrained + torch.randn_like(unconstrained))
    return drawn


def toward(part: float) -> Callable[[Any], Tensor]:
    """Starts on the way from a site's median to a draw, in unconstrained space.

    Far out in a wide prior, all slopes lead to the mode with the thickest tail.
    """

    def initial(site: Any) -> Tensor:
        to_support = biject_to(site["fn"].support)
        start, end = (to_support.inv(value) for value in (median(site), drawn(site)))
        value: Tensor = to_support(start + part * (end - start))
        return value

    return initial
