"""The guide as an importance proposal: the k-hat of a fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ppl_vi.counts import check_count
from ppl_vi.diagnostics.pareto import FEWEST_DRAWS, KHat
from ppl_vi.job import Job
from ppl_vi.questions.singles import plate_of_singles, singles
from ppl_vi.questions.weighing import Weighing
from ppl_vi.sweeping.guides import marginalized

_MOST_ROWS = 100


def guide_khat(job: Job, num_draws: int) -> KHat:
    """The k-hat of the guide's draws; inside the fitted parameters.

    Args:
        job: the fitted model and guide.
        num_draws: S.

    Raises:
        ValueError: fewer than 25 draws.
        ModelError, GuideError: as ``singles`` does.
        FloatingPointError: as ``smoothed`` does.
    """
    check_count("num_draws", num_draws, least=FEWEST_DRAWS)
    job = marginalized(job)
    weighing = Weighing(job.weighted_pairs, job.data_plates)
    if job.data_plates and plate_of_singles(weighing) is not None:
        weighing = replace(weighing, batches=lambda: [_some_rows(job)])
    drawn = list(singles(weighing, num_draws))
    return KHat.of(torch.cat([each.log_w for each in drawn]), max(e.rounding for e in drawn))


def _some_rows(job: Job) -> Any:
    """A batch of at most 100 rows from all over the data, for its own sake."""
    count = job.source.num_rows or 1
    rows = torch.linspace(0, count - 1, min(_MOST_ROWS, count)).round().long()
    batch = job.source.at(rows)
    return job.pair(batch), 1.0, job.handler(batch)
