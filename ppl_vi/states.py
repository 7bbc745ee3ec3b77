"""What estimators and baselines keep from step to step."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ppl_vi.estimators import Estimator
from ppl_vi.memory import known_about
from ppl_vi.program import Pair, Structure


class SiteState(NamedTuple):
    """The states of one site's estimator and of its baseline; ``None`` where they have none."""

    estimator: nn.Module | None = None
    baseline: nn.Module | None = None


States = dict[str, SiteState]


def states_of(
    objective: Any, pair: Pair, structure: Structure, estimators: Mapping[str, Estimator]
) -> States:
    """The states of an objective on a pair, made when first asked for, forgotten with either.

    Args:
        objective: each object has its own; it is immutable.
        pair: the model and the guide.
        structure: of the pair.
        estimators: by site.
    """
    # Batches differ in their plates, but a state may be made for the size of an event.
    events = tuple(
        site.shape[len(site.shape) - site.event_dim :] for site in structure.sites.values()
    )
    known, asked = known_about(pair), ("states", id(objective), events)
    owner, states = known.get(asked, (None, {}))
    if owner is None or owner() is not objective:  # another objective may have had this identity
        states = {}
        known[asked] = weakref.ref(objective), states
    for name, estimator in estimators.items():
        if name not in states:
            site, baseline = structure.sites[name], estimator.subtracted
            states[name] = SiteState(
                estimator.init(site), None if baseline is None else baseline.init(site)
            )
    kept: States = states
    return kept
