"""Which estimator serves which site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator
from ppl_vi.estimators.baselines import LeaveOneOut
from ppl_vi.estimators.pathwise import Pathwise
from ppl_vi.estimators.score_function import ScoreFunction
from ppl_vi.program import Site, Structure

Estimators = Estimator | Mapping[str, Estimator] | Literal["auto"]
"""One estimator for every site, a dict by site (the others are ``"auto"``), or ``"auto"``."""


def choose_estimators(
    structure: Structure, estimators: Estimators, num_particles: int
) -> dict[str, Estimator]:
    """The estimator of each site that the guide draws, checked against it.

    ``"auto"`` is pathwise where the distribution has a reparameterized draw, else the score
    function with a leave-one-out baseline; discrete sites that the guide leaves out are summed out
    and need none. A Delta has nothing to estimate and is always pathwise.

    Raises:
        GuideError: a site is named that the guide does not draw, or an estimator refuses its site.
    """
    named = estimators if isinstance(estimators, Mapping) else {}
    unknown = [name for name in named if name not in structure.drawn]
    if unknown:
        drawn = ", ".join(f"'{name}'" for name in structure.drawn) or "none"
        raise GuideError(
            f"site '{unknown[0]}' has an estimator, but the guide draws no such site (it draws "
            f"{drawn}). Correct the name, or leave it out."
        )
    chosen = {}
    for name in structure.drawn:
        site = structure.sites[name]
        if name in named:
            chosen[name] = named[name]
        elif isinstance(estimators, Estimator) and not site.fixed:
            chosen[name] = estimators
        else:
            chosen[name] = _automatic(site)
        chosen[name].check(site, num_particles)
    return chosen


def _automatic(site: Site) -> Estimator:
    return Pathwise() if site.reparameterizable else ScoreFunction(LeaveOneOut())
