"""Where a guide starts, and how a guide is built from a name or a class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from itertools import cycle
from typing import Any, TypeGuard

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from ppl_vi.data.orders import some_rows
from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.errors import GuideError, ModelError
from ppl_vi.job import Job
from ppl_vi.partial import PartialGuide, is_partial
from ppl_vi.program import (
    Structure,
    enumerable_sites,
    hide,
    look_at_latents,
    plate_dims,
)
from ppl_vi.randomness import forked_rng
from ppl_vi.registry import (
    autoguide_builder,
    guide_builder,
    swept_builder,
    takes_start,
)
from ppl_vi.starts import GuideStart, Mode, drawn, find_modes, locate, median, toward

Program = Callable[..., Any]

ROWS_TO_START = 10_000
"""From which a fit on minibatches starts; one batch may be too small to show all clusters."""

_PARTS = (1.0, 0.5, 0.25, 0.125)


def initial_values(model: Program, source: DataSource) -> dict[str, Tensor]:
    """What the model's own ``initial_values(data)`` gives, by site or parameter; else nothing.

    Of data in parts it sees some rows from all over them.
    """
    given = getattr(model, "initial_values", None)
    if given is None:
        return {}
    batch = _some(source, ROWS_TO_START) if source.in_parts else source.whole()
    values = given(*batch.args, **batch.kwargs)
    if not isinstance(values, Mapping):
        raise ModelError(
            f"initial_values should return a dict of values by site or parameter, but returned "
            f"{type(values).__name__}."
        )
    return {name: torch.as_tensor(value) for name, value in values.items()}


def check_starts(values: Mapping[str, Tensor], structure: Structure) -> None:
    """Look at where a fit starts, once all parameters are there.

    Args:
        values: the model's own ``initial_values``.
        structure: of the model and the guide.

    Raises:
        ModelError: a value belongs to no site and no parameter, or a parameter starts at a place that
            no step can leave.
    """
    parameters = dict(pyro.get_param_store().named_parameters())
    known = {*structure.of_kind("latent", "auxiliary", "marginalized"), *parameters}
    for name in values:
        if name not in known:
            plain = structure.of_kind("latent", "marginalized") + tuple(parameters)
            listed = ", ".join(f"'{one}'" for one in sorted({n for n in plain if "." not in n}))
            raise ModelError(
                f"initial_values: '{name}' is no latent site and no parameter. Those are "
                f"{listed}: correct "
                f"the name, or leave it out."
            )
    for name, parameter in parameters.items():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise ModelError(
                f"parameter '{name}' starts outside its constraint or on its edge (a scale of 0, for "
                f"instance), which no step can leave. Start it inside: 0.1, say, where it has "
                f"to be positive."
            )


def likely_values(model: Program) -> Sequence[Mapping[str, Tensor]]:
    """Draws, by site, near which the model knows its posterior to have mass; else none.

    Unlike ``initial_values`` they are no wish: searches begin there, and go where the posterior is.
    """
    given: Sequence[Mapping[str, Tensor]] = getattr(model, "likely_values", ())
    return given


def resolve_guide(
    guide: str | type[AutoGuide] | Program | PartialGuide,
    model: Program,
    source: DataSource,
    data_plates: frozenset[str],
    values: Mapping[str, Tensor],
    restart: int,
    elsewhere: tuple[str, ...] = (),
    rows: frozenset[str] | None = None,
) -> Program:
    """The guide that ``fit(guide=...)`` stands for.

    Names and autoguide classes are built here: they start at ``values``, else near the posterior as
    found from the prior's typical values (in later restarts from draws of the prior), leave discrete
    latents to be summed out, and index the rows of minibatches. A guide that draws some latents alone
    is completed by one of the others. Any other callable is a guide already. Sites that are drawn
    ``elsewhere`` are left out. ``rows`` are the plates over rows, where several processes share them
    though there are no minibatches.

    Raises:
        ValueError: no guide has that name.
        TypeError: ``guide`` is neither a name, a class nor a callable.
    """
    if is_partial(guide):
        elsewhere = (*elsewhere, *guide.drawn)
        rest = guide.rest
        if is_named(rest) and not _other_latents(model, source, data_plates, elsewhere):
            rest = None
        if rest is not None:
            rest = resolve_guide(rest, model, source, data_plates, values, restart, elsewhere, rows)
        return guide.completed(model, rest)
    build_swept = swept_builder(guide) if isinstance(guide, str) else None
    if build_swept is not None:
        if elsewhere:
            raise GuideError(
                f"guide '{guide}' sets all latents by exact updates and cannot be the rest of another "
                f"guide. Use rest='normal'."
            )
        return build_swept(model)
    rows = data_plates if rows is None else rows
    if isinstance(guide, AutoGuide) and rows and guide.create_plates is None:
        guide.create_plates = _row_plates(model, source, rows)
    if not is_named(guide) and not (takes_start(guide) and not guide.started):
        return _checked(guide)
    visible, start = _start(model, source, data_plates, values, restart, rows)
    program = hide(visible, elsewhere) if elsewhere else visible
    if isinstance(guide, str):
        return guide_builder(guide)(program, start)
    if isinstance(guide, type):
        return autoguide_builder(guide)(program, start)
    if takes_start(guide):
        guide.start_at(start)
    return guide


def _checked(guide: Any) -> Program:
    """A guide as it is; a TypeError for what is none, nor a name or class of one."""
    if isinstance(guide, type):
        wanted = [n for n, p in signature(guide).parameters.items() if p.default is p.empty]
        raise TypeError(
            f"guide: {guide.__name__} is a class, not a guide. Make one first, "
            f"{guide.__name__}({', '.join(wanted)})."
        )
    if not callable(guide):
        raise TypeError(
            f"guide: pass a name, a guide or an autoguide, not {type(guide).__name__}. If "
            f"these are the data, they are the third argument: fit(model, 'normal', data)."
        )
    made: Program = guide
    return made


def _start(
    model: Program,
    source: DataSource,
    data_plates: frozenset[str],
    values: Mapping[str, Tensor],
    restart: int,
    rows: frozenset[str],
) -> tuple[Program, GuideStart]:
    """The model with its enumerable sites hidden, and where a guide of it starts."""
    batch = look_at(source, data_plates)
    hidden = enumerable_sites(model, batch.args, batch.kwargs)
    visible = hide(model, hidden) if hidden else model
    create_plates = _row_plates(model, source, rows) if rows else None
    typical = drawn if restart else median
    likely = likely_values(model)
    first = likely[restart % len(likely)] if likely else {}
    start = GuideStart(init_to_value(values={**first, **values}, fallback=typical), create_plates)
    job = Job(model, visible, source, data_plates)
    found = locate(job, visible, start, batch, values)
    if found is None:
        return visible, start
    near = init_to_value(values={**found.values, **values}, fallback=typical)

    def search(num_searches: int) -> tuple[Mode, ...]:
        known = (init_to_value(values=dict(each), fallback=drawn) for each in likely)
        ways = cycle([*known, *map(toward, _PARTS)])
        starts = (GuideStart(way, create_plates) for way in ways)
        return find_modes(job, visible, starts, batch, found, num_searches)

    several = None if values else search
    return visible, GuideStart(near, create_plates, found.scale, found.whitening, several)


def is_named(guide: Any) -> TypeGuard[str | type[AutoGuide]]:
    """Whether a guide has to be built from a name or a class."""
    return isinstance(guide, str) or (isinstance(guide, type) and issubclass(guide, AutoGuide))


def _other_latents(
    model: Program, source: DataSource, data_plates: frozenset[str], elsewhere: Collection[str]
) -> list[str]:
    """The latents that are neither drawn elsewhere nor summed out."""
    batch = look_at(source, data_plates)
    sites = look_at_latents(model, batch.args, batch.kwargs).sites
    return [site.name for site in sites if not site.enumerable and site.name not in elsewhere]


def look_at(source: DataSource, data_plates: frozenset[str], fewest: int = 0) -> Batch:
    """All rows, or a batch to look at: the first rows of sorted data would tell of one end alone.

    Args:
        source: the data.
        data_plates: empty where there is but one batch.
        fewest: rows to take where they are in memory, even if a batch has not so many.
    """
    if not data_plates:
        return source.whole()
    if (source.by_rows or source.in_parts) and fewest:
        return _some(source, fewest)
    with forked_rng(seed=0):
        return next(source.epoch())


def _some(source: DataSource, count: int) -> Batch:
    """So many rows from all over the data, the same ones each time."""
    with forked_rng(seed=0):
        return source.at(some_rows(source.num_rows or 1, count, source.rows_device))


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
