"""The order in which rows come in a pass over them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_MOST_AT_ONCE = 2**24
"""Rows that are shuffled as one: their numbers take 128 MB."""
_TOGETHER = 16
"""Pieces from all over the data that are shuffled together, where there are more rows."""


def shuffled_rows(
    num_rows: int, size: int, generator: torch.Generator | None, device: torch.device
) -> Iterator[Tensor]:
    """The numbers of all rows in a random order, in batches, the last one ragged.

    Of more than 16 million rows, 16 pieces of a million rows each, taken from random places, are
    shuffled together, one such set after the other: so memory stays flat.

    Args:
        num_rows: N.
        size: of a batch.
        generator: draws the order, at the call; torch's global state when None.
        device: where the numbers are put.
    """
    place = "cpu" if generator is None else generator.device
    if num_rows <= _MOST_AT_ONCE:
        order = torch.randperm(num_rows, generator=generator, device=place)
        return iter(order.to(device).split(size))
    own = torch.Generator()
    own.manual_seed(int(torch.randint(2**62, (), generator=generator, device=place)))
    return (rows.to(device) for rows in _in_sets(num_rows, size, own))


def _in_sets(num_rows: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    length = _MOST_AT_ONCE // _TOGETHER
    places = torch.randperm(-(-num_rows // length), generator=generator)
    left = torch.empty(0, dtype=torch.long)
    for chosen in places.split(_TOGETHER):
        pieces = [
            torch.arange(p * length, min((p + 1) * length, num_rows)) for p in chosen.tolist()
        ]
        rows = torch.cat(pieces)
        rows = torch.cat([left, rows[torch.randperm(len(rows), generator=generator)]])
        full = len(rows) // size * size
        yield from rows[:full].split(size) if full else ()
        left = rows[full:]
    if len(left):
        yield left


def some_rows(num_rows: int, count: int, device: torch.device) -> Tensor:
    """The numbers of some rows, drawn from torch's random state; all of them where there are fewer."""
    if num_rows <= _MOST_AT_ONCE:
        return torch.randperm(num_rows)[:count].to(device)
    drawn: Tensor = torch.randint(num_rows, (2 * count,)).unique()  # few are drawn twice
    return drawn[torch.randperm(len(drawn))[:count]].to(device)
