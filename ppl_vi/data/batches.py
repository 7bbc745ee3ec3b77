"""Batches of rows, and what gives them."""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vi.data.orders import shuffled_rows
from ppl_vi.data.stored import StoredArray
from ppl_vi.errors import DataError
from ppl_vi.program.row_draws import Part
from ppl_vi.ranks.group import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of one call of the model and the guide, and the rows they hold.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        rows: Row numbers in the whole data set, `[size]`; None when they are unknown.
        size: Number of rows in this batch; None when the data have no rows.
        part: Where its rows stand among those of all processes that share the batch, if several do.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Tensor | None
    size: int | None
    part: Part | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the arguments, and the row numbers and their places last."""
        leaves = [
            leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)
        ]
        places = () if self.part is None else (self.part.places,)
        return tuple(leaves) if self.rows is None else (*leaves, self.rows, *places)

    @property
    def own(self) -> int:
        """How many rows count: a process that has none of a batch has borrowed one."""
        return self.part.own if self.part else self.size or 1


class DataSource(ABC):
    """A data set that can be read whole, in part, in shuffled batches or in order.

    Reading by `whole`, `head` or `sequence` leaves torch's global random state as it was, unless
    the user's own `Dataset` draws from it.

    Args:
        num_rows: Number of rows N of the whole data set; None when the data have no rows.
        batch_size: Rows in a batch of `epoch` and `sequence`; None for all rows.

    Attributes:
        num_rows: N, as given.
        batched: Whether `epoch` gives anything else than the one whole batch.
        in_parts: Whether batches are parts of one whole, all of which are looked at in each step.
        may_be_parted: Whether nobody asked for batches of some size.
        by_rows: Whether batches are rows of tensors in memory, told by their numbers alone.
        divisible: Whether several processes would agree which rows are in a batch.
        asked: Rows in a batch, as given.
        ranks: The processes that fit these data together.
        others: Rows of the data set that other processes have.
    """

    by_rows = False
    in_parts = False
    may_be_parted = False
    divisible = True
    ranks: Ranks = ALONE
    others = 0

    def __init__(self, num_rows: int | None, batch_size: int | None) -> None:
        self.num_rows, self.asked = num_rows, batch_size
        self._batch_size = min(batch_size or sys.maxsize, num_rows or 1)
        self.batched = self._batch_size < (num_rows or 1)

    @abstractmethod
    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        """One batch for each tensor of row numbers."""

    def parted(self, rows: int) -> DataSource:
        """The same data in parts of so many rows, in order, that are one whole together."""
        parts = copy.copy(self)  # of all but the rows themselves
        parts._batch_size = min(rows, self.num_rows or 1)
        parts.batched = parts.in_parts = True
        return parts

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """Those of the user's own that the order of a pass comes from."""
        return ()

    @property
    def batch_size(self) -> int | None:
        """Rows in a batch, where ``data_source`` is to be told of it."""
        return self._batch_size if self.batched else None

    @property
    def partial(self) -> bool:
        """Whether a batch may have fewer rows than there are in all."""
        return self.batched

    @property
    def seen(self) -> DataSource:
        """What all processes see alike before the first step."""
        return self

    @property
    def alone(self) -> DataSource:
        """What this process asks its questions of after the fit."""
        if self.ranks is ALONE:
            return self
        source = copy.copy(self)
        source.ranks = ALONE
        return source

    @property
    def rows_device(self) -> torch.device:
        """Where row numbers are."""
        return torch.device("cpu")

    def whole(self) -> Batch:
        """All rows, in data order, as one batch (for a `Dataset` all of it is held in memory)."""
        return self._between(0, self.num_rows or 0)

    def head(self, size: int) -> Batch:
        """The first `size` rows as one batch; all rows when there are fewer."""
        return self._between(0, min(size, self.num_rows or 0))

    def _between(self, start: int, stop: int) -> Batch:
        return self.at(torch.arange(start, stop, device=self.rows_device))

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass over the rows, shuffled when there are several batches, the last one ragged.

        Args:
            generator: Draws the order, at the call; torch's global state when None. A `DataLoader`
                ignores it, since it keeps its own sampler.
        """
        return self._read(self.chunks(generator, shuffled=True))

    def sequence(self) -> Iterator[Batch]:
        """One pass over all rows in data order, in batches of the same size, the last ragged."""
        return self._read(self.chunks())

    def chunks(
        self, generator: torch.Generator | None = None, shuffled: bool = False
    ) -> Iterator[Tensor]:
        """The row numbers of each batch of `epoch` (shuffled) or of `sequence`."""
        num_rows, size, place = self.num_rows or 0, self._batch_size, self.rows_device
        if shuffled and self.batched:
            return shuffled_rows(num_rows, size, generator, place)
        starts = range(0, max(1, num_rows), size)
        return (torch.arange(s, min(s + size, num_rows), device=place) for s in starts)

    def sizes(self) -> dict[int, int]:
        """How many batches of `sequence` have how many rows."""
        if self.num_rows is None:
            return {0: 1}
        many, rest = divmod(self.num_rows, self._batch_size)
        return {self._batch_size: many, rest: 1} if rest else {self._batch_size: many}

    def at(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        return next(self._read([rows]))  # a list: no more will be asked for


def has_rows(leaf: Any) -> TypeGuard[Tensor | StoredArray]:
    """Whether an argument has a first dimension."""
    return isinstance(leaf, Tensor | StoredArray) and leaf.ndim > 0


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | StoredArray | None:
    """The first tensor with dimensions, whose length is the number of rows."""
    return next((leaf for leaf in (*args, *kwargs.values()) if has_rows(leaf)), None)


def checked_count(num_rows: int) -> int:
    """The number of rows; a DataError for none."""
    if num_rows == 0:
        raise DataError("The data have no rows: the first dimension is 0. Pass at least one row.")
    return num_rows
