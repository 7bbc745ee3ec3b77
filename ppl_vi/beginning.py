"""From a model, a guide and data to a job whose parameters are at their start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ppl_vi.compilation import Wish
from ppl_vi.data.sources import DataSource
from ppl_vi.job import Job, data_plates_of
from ppl_vi.partial import PartialGuide
from ppl_vi.program import Call, StartingValues, Structure, review
from ppl_vi.randomness import forked_rng
from ppl_vi.registry import has_last_word, swept_builder
from ppl_vi.starting import ROWS_TO_START, check_starts, initial_values, look_at, resolve_guide
from ppl_vi.sweeping.dividing import divides
from ppl_vi.sweeping.guides import is_swept
from ppl_vi.sweeping.parting import in_parts

Program = Callable[..., Any]


def new_job(
    model: Program,
    guide: str | type[AutoGuide] | Program | PartialGuide,
    source: DataSource,
    data_plate: str | None = None,
    restart: int = 0,
    known: Mapping[str, Tensor] | None = None,
) -> tuple[Job, Callable[[Wish], Structure]]:
    """The job, and a function that creates every parameter and checks that all fits together.

    To be called inside the fit's parameter scope.

    Args:
        model: as ``fit`` takes it.
        guide: likewise.
        source: the data.
        data_plate: the plate over the rows, where the model leaves a doubt.
        restart: its number; those after the first start elsewhere.
        known: where latents start in any case, by site, which spares the search for a start.
    """
    with pyro.get_param_store().scope():  # a look at the model creates no parameter
        if _will_sweep(guide):
            source = in_parts(model, source, data_plate)
        plates = data_plates_of(model, source, data_plate)
    seen, of_batches = source.seen, plates if source.seen.batched else frozenset[str]()
    given = initial_values(model, seen)
    values = {**given, **(known or {})}
    if restart == 0 and known is None:
        own = not isinstance(guide, (str, type, AutoGuide))
        with pyro.get_param_store().scope():
            _review(model, seen, of_batches, given, own)
    with StartingValues(values):
        made = resolve_guide(guide, model, seen, of_batches, values, restart, rows=plates)
    job = Job(model, made, source, plates)

    def begin(wish: Wish) -> Structure:
        with StartingValues(values):
            if is_swept(made):
                batch = look_at(seen, of_batches, ROWS_TO_START)
                made.begin(batch.args, batch.kwargs, values, of_batches, restart > 0, wish)
            if has_last_word(made):
                made.begin_fit(job)
            structure = replace(job, source=seen, data_plates=of_batches).check()
            check_starts(given, structure)
            if seen is source:
                return structure
            with forked_rng():
                if is_swept(made) and divides(job):
                    whole = source.whole()
                    with job.handler(whole):
                        made.divide(whole, plates)
                return job.check()

    return job, begin


def _will_sweep(guide: Any) -> bool:
    return is_swept(guide) or (isinstance(guide, str) and swept_builder(guide) is not None)


def _review(
    model: Program,
    source: DataSource,
    plates: frozenset[str],
    values: Mapping[str, Tensor],
    own_guide: bool,
) -> None:
    """Look at the model by itself; with a guide of the user's own it need not run on its prior."""
    batch = next(source.sequence())
    with Job(model, model, source, plates).handler(batch):
        review(Call(model, batch.args, batch.kwargs), values, source.num_rows, own_guide)
