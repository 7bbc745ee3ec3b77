"""Where a guide starts, and how a guide is built from a name or a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import init_to_median, init_to_sample, init_to_value
from torch import Tensor

from ppl_vi.data import Batch, DataSource
from ppl_vi.program import enumerable_sites, hide, plate_dims
from ppl_vi.registry import GuideStart, guide_builder

Program = Callable[..., Any]


def initial_values(model: Program, batch: Batch) -> dict[str, Tensor]:
    """What the model's own ``initial_values(data)`` gives, by site or parameter; else nothing."""
    given = getattr(model, "initial_values", None)
    if given is None:
        return {}
    return {name: torch.as_tensor(v) for name, v in given(*batch.args, **batch.kwargs).items()}


def resolve_guide(
    guide: str | type[AutoGuide] | Program,
    model: Program,
    source: DataSource,
    data_plates: frozenset[str],
    values: Mapping[str, Tensor],
    restart: int,
) -> Program:
    """The guide that ``fit(guide=...)`` stands for.

    Names and autoguide classes are built here: they start at ``values``, else at the prior's typical
    values (in later restarts at draws from the prior), leave discrete latents to be summed out, and
    index the rows of minibatches. Any other callable is a guide already.

    Raises:
        ValueError: no guide has that name.
        TypeError: ``guide`` is neither a name, a class nor a callable.
    """
    by_class = isinstance(guide, type) and issubclass(guide, AutoGuide)
    if isinstance(guide, AutoGuide) and data_plates and guide.create_plates is None:
        guide.create_plates = _row_plates(model, source, data_plates)
    if not isinstance(guide, str) and not by_class:
        if not callable(guide):
            raise TypeError(f"guide: pass a name, a guide or an autoguide, not {guide!r}.")
        return guide
    batch = next(source.sequence()) if data_plates else source.whole()
    hidden = enumerable_sites(model, batch.args, batch.kwargs)
    start = GuideStart(
        init_loc_fn=init_to_value(
            values=dict(values), fallback=init_to_sample if restart else init_to_median
        ),
        create_plates=_row_plates(model, source, data_plates) if data_plates else None,
    )
    visible = hide(model, hidden) if hidden else model
    if isinstance(guide, str):
        return guide_builder(guide)(visible, start)
    return _from_class(guide, visible, start)


def _from_class(family: Any, model: Program, start: GuideStart) -> Program:
    """An autoguide class knows some of the settings; give it those."""
    settings = {"init_loc_fn": start.init_loc_fn, "create_plates": start.create_plates}
    accepted = inspect.signature(family).parameters
    guide: Program = family(model, **{k: v for k, v in settings.items() if k in accepted})
    return guide


def _row_plates(
    model: Program, source: DataSource, data_plates: frozenset[str]
) -> Callable[..., list[Any]] | None:
    """Plates over all rows, which are handed the row numbers of each batch."""
    batch = next(source.sequence())
    dims = plate_dims(model, batch.args, batch.kwargs)
    whole = {n: d for n, (d, full) in dims.items() if n in data_plates and full == source.num_rows}
    if not whole:
        return None
    num_rows = source.num_rows

    def create_plates(*args: Any, **kwargs: Any) -> list[Any]:
        return [pyro.plate(name, num_rows, dim=dim) for name, dim in whole.items()]

    return create_plates
