"""The figures of the table, from the runs of one problem."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from peers.schedule import Outcome
from peers.settings import Problem


@dataclass(frozen=True)
class Row:
    """One peer, medians over its turns; NaN where there is none.

    Attributes:
        label: the peer.
        per_step: seconds.
        to_numpyro, to_pyro: ratios of the times of a step, each within one turn.
        start: seconds from the start of the process to the first snapshot.
        target: seconds from the start of the process to the target.
        missed: turns that did not reach it.
        elbo: at the end, per datum.
        notes: of the last turn.
        error: of a turn that failed.
    """

    label: str
    per_step: float
    to_numpyro: float
    to_pyro: float
    start: float
    target: float
    missed: int
    elbo: float
    notes: dict[str, object]
    error: str


def best_elbo(found: list[Outcome]) -> float:
    """The highest final one; NaN without any."""
    return max((o.elbo for o in found if o.curve), default=math.nan)


def spread(found: list[Outcome]) -> float:
    """By how much the final ELBOs of peers differ, per datum, at most in any turn."""
    widths = [0.0]
    for turn in {outcome.alternation for outcome in found}:
        elbos = [o.elbo for o in found if o.curve and o.alternation == turn]
        # A NaN would compare with nothing.
        widths.append(max(elbos) - min(elbos) if all(map(math.isfinite, elbos)) else math.inf)
    return max(widths)


def rows(problem: Problem, found: list[Outcome]) -> list[Row]:
    """A row for each label, in the order of the first turn."""
    target = best_elbo(found) - problem.within
    return [_row(label, found, target) for label in dict.fromkeys(o.label for o in found)]


def _row(label: str, found: list[Outcome], target: float) -> Row:
    own = [o for o in found if o.label == label and not o.error]
    times = [_reached(o, target) for o in own if o.curve]
    return Row(
        label,
        _median([o.seconds_per_step for o in own]),
        _ratio(own, found, "NumPyro"),
        _ratio(own, found, "Pyro"),
        _median([o.curve[0][1] for o in own if o.curve]),
        _median([time for time in times if not math.isnan(time)]),
        sum(map(math.isnan, times)),
        _median([o.elbo for o in own if o.curve]),
        own[-1].notes if own else {},
        next((o.error for o in found if o.label == label and o.error), ""),
    )


def _reached(outcome: Outcome, target: float) -> float:
    """When the ELBO was there and was still there at the next snapshot."""
    there = [elbo >= target for _, _, elbo in outcome.curve]
    for place, (_, seconds, _) in enumerate(outcome.curve):
        if all(there[place : place + 2]):
            return seconds
    return math.nan


def _ratio(own: list[Outcome], found: list[Outcome], other: str) -> float:
    if any(not o.curve for o in own):
        return math.nan  # a sweep is no step
    of_other = {o.alternation: o.seconds_per_step for o in found if o.label == other and o.curve}
    return _median(
        [o.seconds_per_step / of_other[o.alternation] for o in own if o.alternation in of_other]
    )


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan
