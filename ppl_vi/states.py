"""What estimators and baselines keep from step to step."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ppl_vi.estimators import Estimator
from ppl_vi.program import Pair, Structure


class SiteState(NamedTuple):
    """The states of one site's estimator and of its baseline; ``None`` where they have none."""

    estimator: nn.Module | None = None
    baseline: nn.Module | None = None


States = dict[str, SiteState]

_KEPT: dict[int, dict[tuple[int, int], States]] = {}


def states_of(
    objective: Any, pair: Pair, structure: Structure, estimators: Mapping[str, Estimator]
) -> States:
    """The states of an objective on a pair, made when first asked for and kept with the objective.

    Args:
        objective: each object has its own; it is immutable, and they are forgotten with it.
        pair: the model and the guide.
        structure: of the pair.
        estimators: by site.
    """
    owners = [getattr(program, "__self__", program) for program in (pair.model, pair.guide)]
    if id(objective) not in _KEPT:
        _KEPT[id(objective)] = {}
        weakref.finalize(objective, _KEPT.pop, id(objective), None)
    states = _KEPT[id(objective)].setdefault((id(owners[0]), id(owners[1])), {})
    for name, estimator in estimators.items():
        if name not in states:
            site, baseline = structure.sites[name], estimator.subtracted
            states[name] = SiteState(
                estimator.init(site), None if baseline is None else baseline.init(site)
            )
    return states


def kept_states(objective: Any) -> States:
    """All states that an objective has by now, by site."""
    kept: States = {}
    for states in _KEPT.get(id(objective), {}).values():
        kept.update(states)
    return kept
