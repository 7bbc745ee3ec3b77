"""Are the elements of a plate independent, as it declares? Asked of the data, by moving some rows.

Half of the rows change places among themselves, all their columns together, while the latents keep
their values. Sums and means over all rows stay as they are. So where the distribution of an element
moves whose own row stayed in place, it is computed from another row: x[1:] given x[:-1] in one plate.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_vi.program.batches import traced_alone
from ppl_vi.program.layout import plate_frames
from ppl_vi.program.messengers import ReuseValues
from ppl_vi.program.scene import Call
from ppl_vi.program.tracing import drawn_values, sample_sites
from ppl_vi.randomness import forked_rng

_FEWEST_ROWS, _MOST_ROWS = 4, 10_000
_LAGS = 10
"""A plate over x[lag:] is so much shorter than the data."""
_TOLERANCE = 1e-3


def suspect_dependence(call: Call) -> None:
    """Warn where elements of one plate are computed from each other's observed values.

    Args:
        call: of the model.
    """
    rows = next((len(t) for t in call.tensors.values() if t.dim()), 0)
    if not _FEWEST_ROWS <= rows <= _MOST_ROWS:
        return
    with suppress(ValueError, RuntimeError, IndexError, TypeError, NotImplementedError):
        with torch.no_grad(), forked_rng(seed=0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = next(_dependent(call, rows), None)
        if found is not None:
            site, plate = found
            warnings.warn(
                f"site '{site}': the distribution of some elements of plate '{plate}' is "
                f"computed from other "
                f"rows of the data (x[1:] given x[:-1], for instance), though a plate declares "
                f"its elements "
                f"independent: batches, loo() and predict() take rows apart. Pass the other rows as an "
                f"argument of their own, as in fit(model, guide, (x[:-1], x[1:])), or loop with "
                f"pyro.markov.",
                stacklevel=2,
            )


def _dependent(call: Call, rows: int) -> Iterator[tuple[str, str]]:
    """Sites and plates with such elements."""
    moved, others = _with_moved_rows(call, rows)
    first = traced_alone(call)
    values = drawn_values(first)
    with ReuseValues(values):
        again, after = (sample_sites(traced_alone(each)) for each in (call, others))
    for name, site in sample_sites(first).items():
        if not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        value = site["value"]
        before, repeated, new = (t[name]["fn"].log_prob(value) for t in (again, again, after))
        if not torch.allclose(site["fn"].log_prob(value), repeated, _TOLERANCE, _TOLERANCE):
            continue  # it draws by itself
        changed = ~torch.isclose(before, new, _TOLERANCE, _TOLERANCE, equal_nan=True)
        for frame in plate_frames(site):
            still = _in_place(frame, site, after[name]["value"], moved)
            if still is not None and (_along(changed, frame.dim) & still).any():
                yield name, frame.name


def _with_moved_rows(call: Call, rows: int) -> tuple[Tensor, Call]:
    """Which rows move, and the call with them moved."""
    chosen = torch.randperm(rows)[: rows // 2].sort().values
    index = torch.arange(rows)
    index[chosen] = chosen.roll(1)

    def permuted(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows:
            return leaf[index.to(leaf.device)]
        return leaf

    args, kwargs = tree_map(permuted, (call.args, dict(call.kwargs)))
    return index != torch.arange(rows), Call(call.program, args, kwargs)


def _in_place(frame: Any, site: Any, value: Tensor, moved: Tensor) -> Tensor | None:
    """Which elements of the plate keep their own row; None where that cannot be told."""
    if frame.size == len(moved):
        return ~moved
    if not len(moved) - _LAGS <= frame.size < len(moved):
        return None
    own = site["value"]
    dim = frame.dim - site["fn"].event_dim
    if own.dim() < -dim or own.shape[dim] != frame.size or value.shape != own.shape:
        return None
    if len(torch.unique(own, dim=dim + own.dim()).movedim(dim, 0)) < frame.size:
        return None  # rows that are alike
    return ~_along(own != value, dim)


def _along(flags: Tensor, dim: int) -> Tensor:
    """``[size]``: whether any flag of each element of the plate is set."""
    return flags.movedim(dim, -1).reshape(-1, flags.shape[dim]).any(0)
