"""The rows of a data set that a process has, of several that share them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vi.data.arguments import Device, as_arguments
from ppl_vi.data.sources import Batch, DataSource, data_source
from ppl_vi.errors import DataError
from ppl_vi.program.row_draws import Part
from ppl_vi.ranks.group import Ranks

__all__ = ["Shard", "ShardedSource", "shared_source"]

Shard = Literal["split", "given"]

_TO_START = 10_000
"""Rows that processes with parts of their own show each other, to start from the same."""


def shared_source(
    data: Any, batch_size: int | None, device: Device, shard: Shard | None, ranks: Ranks
) -> DataSource:
    """The data of one process, as ``data_source`` reads them: of several, its part.

    Args:
        data: all rows with ``"split"``, the process's own part with ``"given"``, which may be empty.
        batch_size: rows in a batch, those of all processes together.
        device: where to put the tensors.
        shard: which of the two.
        ranks: the processes.

    Raises:
        DataError: they were given data that do not belong together, or that cannot be divided.
    """
    if ranks.size == 1:
        return data_source(data, batch_size, device)
    empty = False
    if shard == "given":
        data, empty = _lent(data, device, ranks)
    source = data_source(data, batch_size, device)
    found = ranks.gathered(0 if empty else source.num_rows)
    counts = [count for count in found if count is not None]
    if len(counts) < ranks.size:
        if counts:
            raise DataError(f"some processes were given rows, others none: {found}, by rank.")
        source.ranks = ranks  # nothing to divide: all do the same
        return source
    if not source.divisible:
        raise DataError(
            "a DataLoader or an IterableDataset keeps its own order of rows, on which several "
            "processes would not agree. Pass a Dataset that has __getitem__, with batch_size=."
        )
    if shard == "given":
        seen = _shown(source, counts, ranks)
        return ShardedSource(source, ranks, counts, seen)
    if len(set(counts)) > 1:
        raise DataError(
            f"shard='split' wants every process to have all rows, but they have {counts}, by rank. "
            f"Pass shard='given' where each has a part of its own."
        )
    return ShardedSource(source, ranks, counts, source)


class ShardedSource(DataSource):
    """The part of a process in each batch; row numbers are those among the rows of all processes.

    A process without a row in a batch borrows one, which does not count, so that it takes part in all
    that the others do.

    Args:
        own: the rows that are here.
        ranks: the processes.
        counts: how many rows are with each of them.
        seen: what all of them see alike before the first step: the rows here, where these are all.

    Attributes:
        own: as given.
        split: whether all rows are here.
    """

    partial = True

    def __init__(
        self, own: DataSource, ranks: Ranks, counts: Sequence[int], seen: DataSource
    ) -> None:
        self.own, self.split, self._seen = own, own is seen, seen
        super().__init__(counts[0] if self.split else sum(counts), own.asked)
        self.by_rows, self.ranks = own.by_rows, ranks
        self.may_be_parted = own.may_be_parted
        self._first = 0 if self.split else sum(counts[: ranks.rank])
        self._count = counts[ranks.rank]
        self._whole: Batch | None = None

    @property
    def rows_device(self) -> torch.device:
        return self.own.rows_device

    @property
    def seen(self) -> DataSource:
        return self._seen.parted(self._batch_size) if self.in_parts else self._seen

    @property
    def alone(self) -> DataSource:
        source = self.own.parted(self._batch_size) if self.in_parts else copy.copy(self.own)
        source.others = 0 if self.split else (self.num_rows or 0) - self._count
        return source

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        return self.own.generators

    def head(self, size: int) -> Batch:
        """So many of the rows that are here, taken again where there are fewer: for a look alone."""
        rows = torch.arange(size, device=self.rows_device) % max(1, self._count)
        return self._numbered(self.own.at(rows), rows, None)

    def whole(self) -> Batch:
        if self._whole is None:  # kept, since its rows are taken from those that are here
            self._whole = super().whole()
        return self._whole

    def at(self, rows: Tensor) -> Batch:
        return next(self._read([rows])) if self.batched or self._whole is None else self._whole

    def sequence(self) -> Iterator[Batch]:
        return super().sequence() if self.batched else iter((self.whole(),))

    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        parts: deque[tuple[Tensor, Part]] = deque()  # what is read may be asked for some ahead

        def rows_of() -> Iterator[Tensor]:
            for chunk in chunks:
                parts.append(self._part(chunk))
                yield parts[-1][0]

        read = self.own._read([*rows_of()] if isinstance(chunks, list) else rows_of())
        return (self._numbered(batch, *parts.popleft()) for batch in read)

    def _numbered(self, batch: Batch, rows: Tensor, part: Part | None) -> Batch:
        return replace(batch, rows=rows + self._first, size=len(rows), part=part)

    def _part(self, chunk: Tensor) -> tuple[Tensor, Part]:
        """The rows of a batch that are this process's, by their numbers here."""
        ranks, here = self.ranks, chunk - self._first
        places = torch.arange(len(chunk), device=chunk.device)
        if self.split:
            places = places.tensor_split(ranks.size)[ranks.rank]
        else:
            places = places[(here >= 0) & (here < self._count)]
            places = places[here[places].argsort()]  # whole data are read in their order
        rows, own = here[places], len(places)
        if own == 0:
            places, rows = places.new_zeros(1), here.new_zeros(1)
        return rows, Part(places, len(chunk), own, ranks.rank, ranks.sum)


def _lent(data: Any, device: Device, ranks: Ranks) -> tuple[Any, bool]:
    """Data with a row of another process, where there is none; and whether that is so.

    Raises:
        DataError: rows of different kinds are with different processes, or none anywhere.
    """
    leaves: list[Tensor] = []
    if isinstance(data, (Tensor, tuple, dict)) or hasattr(data, "__array__"):
        args, kwargs = as_arguments(data, "data", device)
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()]
        leaves = [t for t in tensors if len(t) == len(tensors[0])]
    kinds = ranks.gathered([(tuple(t.shape[1:]), str(t.dtype)) for t in leaves])
    if any(kind != kinds[0] for kind in kinds):
        listed = "; ".join(f"rank {rank}: {kind}" for rank, kind in enumerate(kinds))
        raise DataError(
            f"rows have other shapes or dtypes in other processes ({listed}). Give all the same."
        )
    if not leaves:
        return data, False
    counts = ranks.gathered(len(leaves[0]))
    if 0 not in counts:
        return data, False
    if not any(counts):
        raise DataError("no process has a row. Pass at least one.")
    lender = next(rank for rank, count in enumerate(counts) if count)
    rows = [
        ranks.same(t[:1].clone() if len(t) else t.new_zeros(1, *t.shape[1:]), lender)
        for t in leaves
    ]
    if counts[ranks.rank]:
        return data, False
    lent = dict(zip(map(id, leaves), rows, strict=True))
    if kwargs:
        return {name: lent.get(id(leaf), leaf) for name, leaf in kwargs.items()}, True
    return tuple(lent.get(id(leaf), leaf) for leaf in args), True


def _shown(source: DataSource, counts: Sequence[int], ranks: Ranks) -> DataSource:
    """Rows of every process in the order of ranks: all, where these are few."""
    total, own = sum(counts), counts[ranks.rank]
    size = min(own, -(-_TO_START * own // total)) if total > _TO_START else own
    batch = source.head(max(1, size))

    def together(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != batch.size:
            return leaf
        return torch.cat([part.to(leaf.device) for part in ranks.gathered(leaf[:size])])

    args, kwargs = (
        tuple(map(together, batch.args)),
        {n: together(v) for n, v in batch.kwargs.items()},
    )
    return data_source(kwargs or args, source.asked)
