"""Whether sweeps look at all rows at once, or at one part after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.errors import ModelError
from ppl_vi.job import data_plates_of
from ppl_vi.program import has_parameters, states_and_entries

_MOST_AT_ONCE = 2**28
"""Entries of data and sites, times the states of a discrete latent, that one sweep may look at."""
_IN_A_PART = 2**23
"""Likewise, of one part: a part and what is computed from it stay in a processor's caches."""
_MOST_STATES = 1_000
"""Data that fit with so many times their entries need not be looked at."""
_LOOKED_AT = 256
"""Rows; models may ask for more than a few."""


def in_parts(model: Callable[..., Any], source: DataSource, data_plate: str | None) -> DataSource:
    """The data in parts, where sweeps over all rows would need too much memory, else as they are.

    Both bounds are fixed numbers, so that a fit repeats on any machine.

    Args:
        model: the Pyro model.
        source: the data; those of which somebody asked for minibatches stay as they are.
        data_plate: the plate over the rows, where the model leaves a doubt.

    Raises:
        ModelError: as ``find_data_plates`` does, of data that cannot be in memory as a whole.
    """
    rows = source.ranks.gathered(_rows_of_a_part(model, source, data_plate))
    known = [count for count in rows if count]
    return source.parted(min(known) * len(rows)) if known else source


def _rows_of_a_part(
    model: Callable[..., Any], source: DataSource, data_plate: str | None
) -> int | None:
    """How many of the rows that are here make a part; None for all of them."""
    if source.num_rows is None or not source.may_be_parted:
        return None
    if source.by_rows and _entries(source.whole()) * _MOST_STATES <= _MOST_AT_ONCE:
        return None
    try:
        few = source.head(_LOOKED_AT)
        if source.by_rows and has_parameters(model, few.args, few.kwargs):
            return None  # which are not learned from parts
        entries = _entries_of_a_row(model, source, source.num_rows)
        if source.by_rows and entries * source.num_rows <= _MOST_AT_ONCE:
            return None
        number = -(-entries * source.num_rows // _IN_A_PART)
        rows = -(-source.num_rows // number)  # all of them nearly alike
        data_plates_of(model, source.parted(rows), data_plate)
        return rows
    except ModelError:
        if source.by_rows:  # its rows hang together, or it runs on all of them only
            return None
        raise


def _entries_of_a_row(model: Callable[..., Any], source: DataSource, num_rows: int) -> int:
    """Of the data and of all sites that follow the rows, times the most states of a latent there."""
    size = min(num_rows, _LOOKED_AT)
    more, few = source.head(size), source.head(size // 2)
    states, sites = states_and_entries(model, more.args, more.kwargs)
    _, others = states_and_entries(model, few.args, few.kwargs) if size > 1 else (1, 0)
    followed = states * (sites - others) + _entries(more) - _entries(few)
    return max(1, -(-followed // (size - size // 2)))


def _entries(batch: Batch) -> int:
    leaves: list[Tensor] = list(batch.tensors)
    return sum(leaf.numel() for leaf in leaves)
