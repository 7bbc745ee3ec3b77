"""Which plates run over the rows of the data, told from two batches of different sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pyro import poutine

from ppl_vi.errors import ModelError
from ppl_vi.program.layout import plate_frames
from ppl_vi.program.messengers import FeasibleValues, KeepFrozen, naming_site
from ppl_vi.program.tracing import Program, sample_sites
from ppl_vi.randomness import forked_rng


class Arguments(NamedTuple):
    """The arguments of one batch and its number of rows."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int


def find_data_plates(
    model: Program, batches: tuple[Arguments, Arguments], num_rows: int, named: str | None
) -> frozenset[str]:
    """The plates whose size follows the batch: those that the scale N / B belongs to.

    Args:
        model: the Pyro model.
        batches: two batches of different sizes.
        num_rows: N, the rows of the whole data set.
        named: the plate's name, where the user gave it.

    Raises:
        ModelError: there is no such plate, its size is neither the batch's nor N with the batch as
            subsample, two are nested, or an observed site follows the batch outside any.
    """
    traces = [_trace(model, batch, num_rows) for batch in batches]
    frames = [
        {frame.name: frame for site in sites.values() for frame in plate_frames(site)}
        for sites in traces
    ]
    sizes = [batch.size for batch in batches]
    following = {n for n in frames[0] if [f[n].size for f in frames if n in f] == sizes}
    _check_found(following, frames[0], named, sizes[0], num_rows)
    plates = frozenset(following if named is None else {named})
    for name in plates:
        if frames[0][name].full_size not in (sizes[0], num_rows):
            raise ModelError(
                f"plate '{name}' has size {frames[0][name].full_size}, but the data have {num_rows} "
                f"rows and the batch {sizes[0]}. Give the plate the size of the batch, or the size "
                f"of the whole data with subsample_size=len(batch)."
            )
    _check_sites(traces, plates)
    return plates


def _trace(model: Program, batch: Arguments, num_rows: int) -> dict[str, Any]:
    what = f"on a batch of {batch.size} of the {num_rows} rows the model"
    return _alone(model, batch.args, batch.kwargs, what)


def _alone(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], what: str = "the model"
) -> dict[str, Any]:
    """The sample sites of a model run by itself; random state is left as it was."""
    with forked_rng(), naming_site(what, ModelError), KeepFrozen(), FeasibleValues():
        return sample_sites(poutine.trace(model).get_trace(*args, **kwargs))


def _check_found(
    following: set[str], frames: Mapping[str, Any], named: str | None, size: int, num_rows: int
) -> None:
    listed = ", ".join(f"'{name}' of size {frame.size}" for name, frame in frames.items()) or "none"
    if named is not None and named not in following:
        raise ModelError(
            f"plate '{named}' (data_plate) does not follow the rows of a batch: it should have size "
            f"{size} for a batch of {size} of the {num_rows} rows. The model's plates: {listed}."
        )
    if not following:
        own = [name for name, frame in frames.items() if (frame.full_size or 0) > frame.size]
        remedy = (
            f"Leave the subsampling of plate '{own[0]}' to fit: subsample_size=len(batch)."
            if own
            else f"Put the sites of the data in pyro.plate('data', len(data)), so that a batch can "
            f"count for all {num_rows} rows."
        )
        raise ModelError(
            f"the data come in batches (batch_size, Dataset or DataLoader), but no plate of the model "
            f"follows the rows of a batch (plates: {listed}). {remedy}"
        )


def _check_sites(traces: list[dict[str, Any]], plates: frozenset[str]) -> None:
    for name, site in traces[0].items():
        if site["infer"].get("_deterministic"):
            continue  # it has no density to scale
        own = [frame.name for frame in plate_frames(site) if frame.name in plates]
        if len(own) > 1:
            raise ModelError(
                f"site '{name}' stands in two plates that follow the batch, '{own[0]}' and "
                f"'{own[1]}'. Name the one over the rows with data_plate=."
            )
        other = traces[1].get(name)
        if not own and other is not None and site["value"].shape != other["value"].shape:
            raise ModelError(
                f"site '{name}' has shape {tuple(site['value'].shape)}, which follows the batch, but "
                f"stands in no plate over the rows, so that it would not be scaled. Put it in a "
                f"pyro.plate of the size of the batch."
            )


def plates_over_rows(model: Program, fewer: Arguments, named: Collection[str]) -> frozenset[str]:
    """Those of the plates that run over the rows; all of them where the model does not tell.

    On fewer rows such a plate has fewer elements, or its observed values have.

    Args:
        model: the Pyro model.
        fewer: some of the rows.
        named: the plates in question.
    """
    try:
        sites = _alone(model, fewer.args, fewer.kwargs)
    except ModelError:  # the model names the number of rows
        return frozenset(named)
    found = set()
    for site in sites.values():
        shape, event_dim = site["value"].shape, site["fn"].event_dim
        for frame in plate_frames(site) if site["is_observed"] else ():
            dim = frame.dim - event_dim
            sizes = {frame.size, shape[dim] if -dim <= len(shape) else 1}
            if frame.name in named and fewer.size in sizes:
                found.add(frame.name)
    return frozenset(found)


def enumerable_sites(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The discrete latents of a model that can be summed out."""
    return [
        name
        for name, site in _alone(model, args, kwargs).items()
        if not site["is_observed"] and site["fn"].has_enumerate_support
    ]


def plate_dims(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[int, int]]:
    """The dimension (counted from the right) and full size of each plate of a model."""
    frames = [f for site in _alone(model, args, kwargs).values() for f in plate_frames(site)]
    return {frame.name: (frame.dim, frame.full_size) for frame in frames}
