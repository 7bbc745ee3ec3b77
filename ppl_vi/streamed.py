"""Sweeps over rows that are looked at a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ppl_vi.data.sources import Batch
from ppl_vi.job import Job
from ppl_vi.parts import Parts

if TYPE_CHECKING:
    from ppl_vi.sweeping import SweptGuide

Tensors = tuple[Tensor, ...]


class Way(Protocol):
    """How a sweep is made of sums over all rows, pass after pass."""

    @property
    def passes(self) -> int:
        """How many sums a sweep needs, each after the ones before."""

    def asks(self, state: Tensors, known: Sequence[Tensors]) -> Callable[[Batch], Tensors]:
        """What a pass sums over the parts, where the sums of those before are known."""

    def like(self, number: int) -> Tensors:
        """Tensors of the shapes that the sum of a pass has."""

    def elbo(self, state: Tensors, first: Tensors) -> Tensor:
        """The ELBO of a state, from the sum of the first pass."""

    def new(self, state: Tensors, known: Sequence[Tensors]) -> Tensors:
        """The state after the sweep, from all sums."""


class Streamed:
    """Makes sweeps over all rows, of which one part at a time is in memory.

    The sum of the first pass over the rows at a state has all that the next sweep begins with, and the
    state's ELBO. So it is taken after a sweep, and kept for the next one.

    Args:
        guide: that is swept.
        job: the guide with its data, whose batches are the parts.
    """

    def __init__(self, guide: SweptGuide, job: Job) -> None:
        self._guide, self._parts = guide, Parts(job)
        self._way: Way = _ByBlocks(guide)
        self._first: Tensors | None = None

    def advance(self) -> float:
        """One more sweep; gives the ELBO after it, in nats."""
        way, state = self._way, self._guide.tensors()
        known = [self._first or self._total(state, [])]
        while len(known) < way.passes:
            known.append(self._total(state, known))
        self._guide.adopt(way.new(state, known))
        state = self._guide.tensors()
        self._first = self._total(state, [])
        return way.elbo(state, self._first).item()

    def _total(self, state: Tensors, known: Sequence[Tensors]) -> Tensors:
        way = self._way
        return self._parts.total(way.asks(state, known), way.like(len(known)))


class _ByBlocks:
    """A pass for each block of factors, by the program itself."""

    def __init__(self, guide: SweptGuide) -> None:
        self._guide = guide

    @property
    def passes(self) -> int:
        return self._guide.passes

    def asks(self, state: Tensors, known: Sequence[Tensors]) -> Callable[[Batch], Tensors]:
        now = self.new(state, known)
        return lambda batch: self._guide.asked(batch.args, batch.kwargs, len(known), now)

    def like(self, number: int) -> Tensors:
        return self._guide.asked_like(number)

    def elbo(self, state: Tensors, first: Tensors) -> Tensor:
        return first[0]

    def new(self, state: Tensors, known: Sequence[Tensors]) -> Tensors:
        for number, (_, *gradients) in enumerate(known):
            state = self._guide.answered(number, state, gradients)
        return state
