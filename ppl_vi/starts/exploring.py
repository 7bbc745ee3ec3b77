"""Look for several modes of a posterior, from draws of the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ppl_vi.data.sources import Batch
from ppl_vi.job import Job
from ppl_vi.randomness import forked_rng
from ppl_vi.starts.guide_start import GuideStart
from ppl_vi.starts.locating import Whereabouts, locate
from ppl_vi.starts.modes import Mode

_LOG_OF_NO_MASS = -10.0
_SEEDS = 2**31


def find_modes(
    job: Job,
    model: Callable[..., Any],
    elsewhere: Iterator[GuideStart],
    batch: Batch,
    first: Whereabouts,
    num_searches: int,
) -> tuple[Mode, ...]:
    """Where the posterior has mass, as found from several draws of the prior; the heaviest first.

    Places found twice are named once, and those with less than e^-10 of the heaviest one's mass are
    left out. Which modes are found is up to chance: those whose basins the prior rarely meets may
    be missing.

    Args:
        job: the model and its data.
        model: the same model with its enumerable sites hidden.
        elsewhere: starts at draws of the prior, or between these and the median.
        batch: the rows to look at.
        first: what was found from the usual start, which counts as one search.
        num_searches: how many.
    """
    every = [first]
    for seed in torch.randint(_SEEDS, (num_searches - 1,)).tolist():
        with forked_rng(seed=seed):
            found = locate(job, model, next(elsewhere), batch, {})
        every += [found] if found is not None else []
    modes = [Mode(found.whitening, found.bound) for found in every if found.whitening is not None]
    apart: list[Mode] = []
    for mode in sorted(modes, key=lambda mode: -mode.log_mass):
        heavy = not apart or mode.log_mass > apart[0].log_mass + _LOG_OF_NO_MASS
        if heavy and not any(mode.is_at(other) for other in apart):
            apart.append(mode)
    return tuple(apart)
