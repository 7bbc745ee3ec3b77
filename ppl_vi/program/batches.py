"""Which plates run over the rows of the data, told from two batches of different sizes."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from math import isclose, nan, prod
from typing import Any, NamedTuple

from pyro import poutine
from torch import Tensor

from ppl_vi.errors import ModelError
from ppl_vi.program.layout import plate_frames
from ppl_vi.program.messengers import FeasibleValues, KeepFrozen
from ppl_vi.program.naming import naming_site
from ppl_vi.program.scene import Call
from ppl_vi.program.shape_lessons import batch_remedy
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
    _check_scales(traces, plates, sizes, num_rows)
    return plates


def _trace(model: Program, batch: Arguments, num_rows: int) -> dict[str, Any]:
    what = f"the model on a batch of {batch.size} of the {num_rows} rows"
    call = Call(model, batch.args, batch.kwargs, rows=(batch.size, num_rows))
    return sample_sites(traced_alone(call, what))


def traced_alone(call: Call, what: str = "the model") -> Any:
    """The trace of a model run by itself; random state is left as it was."""
    with forked_rng(), naming_site(what, ModelError, call), KeepFrozen(), FeasibleValues():
        return poutine.trace(call.program).get_trace(*call.args, **call.kwargs)


def _alone(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return sample_sites(traced_alone(Call(model, args, kwargs)))


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
        raise ModelError(
            f"the data come in batches (batch_size, Dataset or DataLoader), but no plate of the model "
            f"follows the rows of a batch (plates: {listed}). {_remedy(frames, size, num_rows)}"
        )


def _remedy(frames: Mapping[str, Any], size: int, num_rows: int) -> str:
    """How a plate comes to follow the rows."""
    for name, frame in frames.items():
        if (frame.full_size or 0) > frame.size:
            return (
                f"Plate '{name}' takes {frame.size} of {frame.full_size} rows by itself, so "
                f"that rows are "
                f"subsampled twice: leave it to fit with pyro.plate('{name}', {num_rows}, "
                f"subsample_size=len(batch)) and the batch as it is, or leave batch_size out."
            )
        if frame.size == num_rows:
            return batch_remedy(name, num_rows, size)
        if frame.size == size:
            return f"Plate '{name}' has a fixed size: write pyro.plate('{name}', len(batch))."
    return (
        f"Put the sites of the data in pyro.plate('data', len(batch)), so that a batch can count for "
        f"all {num_rows} rows."
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


def _check_scales(
    traces: list[dict[str, Any]], plates: frozenset[str], sizes: list[int], num_rows: int
) -> None:
    """Raise a ModelError where the model counts a batch for all rows by itself, as ``fit`` does.

    A number that is N / B for the usual batch alone may be there for another reason: it is warned of.
    """
    for name, site in traces[0].items():
        others = [trace.get(name) for trace in traces]
        frames = plate_frames(site)
        if None in others or not any(frame.name in plates for frame in frames):
            continue
        counted = [
            isclose(_own_scale(other), num_rows / size, rel_tol=1e-6)
            for other, size in zip(others, sizes, strict=True)
        ]
        if not counted[0] or isclose(num_rows, sizes[0]):
            continue
        told = (
            f"site '{name}': poutine.scale in the model counts it {num_rows / sizes[0]:.6g} "
            f"times, and fit "
            f"counts each of the {sizes[0]} rows of a batch for {num_rows / sizes[0]:.6g} as "
            f"well, so that the "
            f"data would count twice over. Take poutine.scale out of the model: fit scales by itself."
        )
        if all(counted):
            raise ModelError(told)
        warnings.warn(told, stacklevel=2)


def _own_scale(site: Any) -> float:
    """What the model itself scales a site by, its plates aside; NaN for a scale by element."""
    scale = site["scale"]
    if isinstance(scale, Tensor) and scale.numel() != 1:
        return nan
    counted: float = prod((f.full_size or f.size) / f.size for f in plate_frames(site))
    return float(scale) / counted


def enumerable_sites(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The discrete latents of a model that can be summed out."""
    return [
        name
        for name, site in _alone(model, args, kwargs).items()
        if not site["is_observed"] and site["fn"].has_enumerate_support
    ]


def has_parameters(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a model asks for parameters."""
    nodes = traced_alone(Call(model, args, kwargs)).nodes.values()
    return any(node["type"] == "param" for node in nodes)


def states_and_entries(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, int]:
    """The most states that a discrete latent of a model has, and how many entries all sites have."""
    sites = _alone(model, args, kwargs).values()
    finite = [s["fn"] for s in sites if not s["is_observed"] and s["fn"].has_enumerate_support]
    states = max((len(fn.enumerate_support(expand=False)) for fn in finite), default=1)
    return states, sum(site["value"].numel() for site in sites)


def plate_dims(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[int, int]]:
    """The dimension (counted from the right) and full size of each plate of a model."""
    frames = [f for site in _alone(model, args, kwargs).values() for f in plate_frames(site)]
    return {frame.name: (frame.dim, frame.full_size) for frame in frames}
