"""Batch after batch, epoch after epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby, repeat
from typing import Any

import torch
from torch import Tensor

from ppl_vi.checkpoints import State
from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.randomness import forked_rng, random_state, use_random_state


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
        self._order: torch.Generator | None = None
        if source.batched:
            self._order = torch.Generator()
            self._order.manual_seed(int(torch.randint(2**62, ())))
        self._began: State = None
        self._taken = 0
        self._pass: Iterator[Batch] | Iterator[Tensor] = iter(())
        self._next: deque[Tensor] = deque()

    def __next__(self) -> Batch:
        return self.batch(self._next_rows()) if self.by_rows else self._further()

    def state(self) -> State:
        """Where it is, for a stream of the same data to go on there."""
        began = self._randomness() if self._began is None else self._began
        return {"began": began, "taken": self._taken, "next": list(self._next)}

    def go_on(self, state: State) -> None:
        """Go on where another stream was: the pass begins as that one did, and is followed so far.

        Batches of a ``Dataset`` or a ``DataLoader`` are read once more.
        """
        with forked_rng():
            self._use_randomness(state["began"])
            self._began, self._pass = None, iter(())
            for _ in range(state["taken"]):
                self._further()
        self._next = deque(rows.to(self._source.rows_device) for rows in state["next"])

    def runs(self, count: int) -> list[list[Tensor]]:
        """The row numbers of the next batches; each list has batches of one size."""
        if not self._source.batched:
            return [[self.usual] * count]
        rows = [self._next_rows() for _ in range(count)]
        return [list(same) for _, same in groupby(rows, key=Tensor.numel)]

    def give_back(self, runs: Sequence[Sequence[Tensor]]) -> None:
        """Take back what was not used; it comes next."""
        self._next.extendleft(reversed([rows for same in runs for rows in same]))

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        return self._source.at(rows)

    def look(self) -> Batch:
        """A batch of the usual size; the stream stays where it is."""
        with forked_rng():  # data that draw
            return self._source.at(self.usual)

    @cached_property
    def usual(self) -> Tensor:
        """The row numbers of a batch of the usual size."""
        return next(self._source.chunks())

    def sizes(self) -> list[Tensor]:
        """The row numbers of one batch of each size."""
        place = self._source.rows_device
        return [torch.arange(size, device=place) for size in self._source.sizes()]

    def share(self, size: int) -> float:
        """The part of all batches that has this many rows."""
        sizes = self._source.sizes()
        return sizes.get(size, 0) / sum(sizes.values())

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
        return self._next.popleft() if self._next else self._further()

    def _further(self) -> Any:
        """The next batch of the pass, or its row numbers; the first of a new pass after the last."""
        while True:
            for item in self._pass:
                self._taken += 1
                return item
            self._begin()

    def _begin(self) -> None:
        source, order = self._source, self._order
        self._began, self._taken = self._randomness(), 0
        if not self.by_rows:
            self._pass = source.epoch(order)
        elif source.batched:
            self._pass = source.chunks(order, shuffled=True)
        else:
            self._pass = repeat(self.usual)

    def _randomness(self) -> State:
        """All that the order of the next pass comes from; row numbers come from the generator alone."""
        own = [generator.get_state() for generator in self._generators()]
        return {"own": own, "all": None if self.by_rows else random_state()}

    def _use_randomness(self, state: State) -> None:
        for generator, own in zip(self._generators(), state["own"], strict=True):
            generator.set_state(own)
        if state["all"] is not None:
            use_random_state(state["all"])

    def _generators(self) -> list[torch.Generator]:
        own = [] if self._order is None else [self._order]
        return [*own, *self._source.generators]
