"""Batch after batch, epoch after epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, repeat

import torch
from torch import Tensor

from ppl_vi.data import Batch, DataSource
from ppl_vi.randomness import forked_rng


class Stream:
    """The batches of a fit, without an end.

    Their order has a random generator of its own, so that what steps draw does not depend on how far
    ahead batches are asked for.

    Args:
        source: the data.

    Attributes:
        by_rows: whether batches are rows of tensors in memory; row numbers tell them.
    """

    def __init__(self, source: DataSource) -> None:
        self._source = source
        self.by_rows = source.by_rows
        generator = None
        if source.batched:
            generator = torch.Generator()
            generator.manual_seed(int(torch.randint(2**62, ())))
        self._batches = _endless_batches(source, generator)
        self._rows = _endless_rows(source, generator)
        self._next: deque[Tensor] = deque()

    def __next__(self) -> Batch:
        return self.batch(self._next_rows()) if self.by_rows else next(self._batches)

    def runs(self, count: int) -> list[list[Tensor]]:
        """The row numbers of the next batches; each list has batches of one size."""
        if not self._source.batched:
            return [[self.usual()] * count]
        rows = [self._next_rows() for _ in range(count)]
        return [list(same) for _, same in groupby(rows, key=len)]

    def give_back(self, runs: Sequence[Sequence[Tensor]]) -> None:
        """Take back what was not used; it comes next."""
        self._next.extendleft(reversed([rows for same in runs for rows in same]))

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        return self._source.at(rows)

    def look(self) -> Batch:
        """A batch of the usual size; the stream stays where it is."""
        with forked_rng():  # data that draw
            return self._source.at(self.usual())

    def usual(self) -> Tensor:
        """The row numbers of a batch of the usual size."""
        return next(self._source.chunks())

    def sizes(self) -> list[Tensor]:
        """The row numbers of one batch of each size."""
        return list({len(rows): rows for rows in self._source.chunks()}.values())

    def share(self, size: int) -> float:
        """The part of all batches that has this many rows."""
        sizes = [len(rows) for rows in self._source.chunks()]
        return sizes.count(size) / len(sizes)

    def tables(self, size: int) -> tuple[tuple[Tensor, ...], tuple[bool, ...]]:
        """The tensors that batches of this size are made of, and which of them rows are taken from.

        They are in the order of the arguments; row numbers come last.
        """
        whole, num_rows = self._source.whole(), self._source.num_rows
        in_part = size < (num_rows or 0)
        own = {id(leaf) for leaf in (*whole.args, *whole.kwargs.values(), whole.rows)}  # not nested
        gathered = (
            in_part and id(tensor) in own and tensor.ndim > 0 and len(tensor) == num_rows
            for tensor in whole.tensors
        )
        return whole.tensors, tuple(gathered)

    def _next_rows(self) -> Tensor:
        return self._next.popleft() if self._next else next(self._rows)


def _endless_batches(source: DataSource, generator: torch.Generator | None) -> Iterator[Batch]:
    while True:
        yield from source.epoch(generator)


def _endless_rows(source: DataSource, generator: torch.Generator | None) -> Iterator[Tensor]:
    if not source.batched:
        yield from repeat(next(source.chunks()))
    while True:
        yield from source.chunks(generator, shuffled=True)
