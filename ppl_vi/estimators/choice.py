"""Which estimator serves which site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator
from ppl_vi.estimators.baselines import LeaveOneOut, MovingAverage
from ppl_vi.estimators.enumerate import Enumerate
from ppl_vi.estimators.pathwise import Pathwise
from ppl_vi.estimators.score_function import ScoreFunction
from ppl_vi.program import Site, Structure

Estimators = Estimator | Mapping[str, Estimator] | Literal["auto"]
"""One estimator for every site, a dict by site (the others are ``"auto"``), or ``"auto"``."""


def named_estimators(structure: Structure, estimators: Estimators) -> dict[str, Estimator]:
    """The estimators that the user chose, by site of the guide; the others are left to ``"auto"``.

    A Delta has nothing to estimate and is never chosen for by one estimator for all.

    Raises:
        GuideError: a site is named that neither the guide draws nor the model sums out.
        TypeError: what is given is not an estimator.
    """
    if isinstance(estimators, Estimator):
        return {n: estimators for n in structure.drawn if not structure.sites[n].fixed}
    if isinstance(estimators, str) and estimators == "auto":
        return {}
    if not isinstance(estimators, Mapping):
        raise TypeError(
            f"estimators: pass an estimator, a dict by site or 'auto', not {estimators!r}."
            f"{_made(estimators)}"
        )
    for name, estimator in estimators.items():
        if not isinstance(estimator, Estimator):
            raise TypeError(
                f"estimators: site '{name}' has {estimator!r}, which is no estimator."
                f"{_made(estimator) or ' Pass one, such as Pathwise() or ScoreFunction().'}"
            )
        if name in structure.marginalized and isinstance(estimator, Enumerate):
            continue  # the model sums it out anyway
        if name not in structure.drawn:
            raise GuideError(_unknown(structure, name))
    return {name: e for name, e in estimators.items() if name in structure.drawn}


def automatic(site: Site, num_particles: int) -> Estimator:
    """The estimator of a site that is neither named nor enumerated."""
    if site.reparameterizable:
        return Pathwise()
    return ScoreFunction(LeaveOneOut() if num_particles > 1 else MovingAverage())


def _unknown(structure: Structure, name: str) -> str:
    if name in structure.marginalized:
        return (
            f"site '{name}' has an estimator, but the guide leaves it out, so that the model sums it "
            f"out. Draw it in the guide, or use Enumerate()."
        )
    drawn = ", ".join(f"'{other}'" for other in structure.drawn) or "none"
    return (
        f"site '{name}' has an estimator, but the guide draws no such site (it draws {drawn}). "
        f"Correct the name, or leave it out."
    )


def _made(given: Any) -> str:
    """What to write in place of a class of estimators."""
    is_class = isinstance(given, type) and issubclass(given, Estimator)
    return f" Make one of the class: {given.__name__}()." if is_class else ""
