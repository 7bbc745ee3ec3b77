"""Sweeps over rows that are looked at a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.compilation import (
    Builds,
    Captured,
    CompiledGraph,
    Cut,
    Execution,
    Wish,
    capture,
    compiled,
    cut,
)
from ppl_vi.compilation.capturing import close
from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.errors import CompileError
from ppl_vi.job import Job
from ppl_vi.sweeping.guides import SweptGuide
from ppl_vi.sweeping.ladder import Ladder
from ppl_vi.sweeping.parts import Parts

Tensors = tuple[Tensor, ...]
OfPart = Callable[[Batch], Sequence[Tensor]]
Total = Callable[[OfPart, Sequence[Tensor]], Tensors]
"""Sums what a function gives for each part, weighted by its share; the second tells the shapes."""


class Way(Protocol):
    """How a sweep is made of sums over all rows, pass after pass."""

    @property
    def passes(self) -> int:
        """How many sums a sweep needs, each after the ones before."""

    def asks(self, state: Tensors, known: Sequence[Tensors]) -> OfPart:
        """What the next pass sums over the parts, where the sums of those before are known."""

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
        wish: unless ``False``, a sweep is captured and cut where rows are summed, which saves passes;
            ``"auto"`` compiles it once the parts that were looked at would have repaid that.
        bar: where to write what is done.
    """

    def __init__(self, guide: SweptGuide, job: Job, wish: Wish, bar: tqdm[None]) -> None:
        self._guide, self._job, self._sweeps = guide, job, 0
        self._ladder = Ladder(job, wish, "", bar)
        self._total: Total = Parts(job).total
        self._way: Way = _ByBlocks(guide)
        self._first: Tensors | None = None
        if not self._ladder.ended:
            with self._ladder.to_captured():
                self._way = self._captured()

    @property
    def execution(self) -> Execution:
        """How sweeps were made."""
        return self._ladder.execution(self._captures)

    @property
    def _captures(self) -> int:
        return 2 * isinstance(self._way, _BySums)

    def state(self) -> State:
        """How sweeps are made, for another one to make them alike."""
        return {"ladder": self._ladder.state(self._captures), "sweeps": self._sweeps}

    def go_on(self, state: State) -> None:
        """Make sweeps as another one did, from the state that the guide is in.

        Raises:
            CompileError: they were captured or compiled, and cannot be here.
        """
        reason = self.execution.reason
        self._ladder.go_on(state["ladder"])
        mode, self._sweeps = self._ladder.mode, state["sweeps"]
        if mode == "eager":
            self._way = _ByBlocks(self._guide)
        elif not isinstance(self._way, _BySums):
            raise CompileError(f"sweeps were {mode}, and cannot be here: {reason}")
        elif mode == "compiled":
            self._way.compile(self._ladder.builds)
        if self._sweeps:
            self._first = _next(self._way, self._guide.tensors(), [], self._total)

    def advance(self) -> float:
        """One more sweep; gives the ELBO after it, in nats.

        Raises:
            CompileError: sweeps are to be compiled, and cannot be.
        """
        self._hasten()
        way, total, state = self._way, self._total, self._guide.tensors()
        self._guide.adopt(_swept(way, state, total, self._first))
        state = self._guide.tensors()
        self._first = _next(way, state, [], total)
        self._sweeps += 1
        return way.elbo(state, self._first).item()

    def _captured(self) -> _BySums:
        parts = _two_sizes(self._job.source)
        made = _BySums(self._guide, self._job, parts)
        self._check(made, parts)
        made.prepare(self._total)
        return made

    def _check(self, made: _BySums, parts: tuple[Batch, Batch]) -> None:
        """Raise CompileError unless both ways come to the same on two parts."""

        def mean(program: OfPart, like: Sequence[Tensor]) -> Tensors:
            found = []
            for batch in parts:
                with self._job.handler(batch):
                    found.append(program(batch))
            each = zip(like, *found, strict=True)
            return tuple(((one + other) / 2).to(kind.dtype) for kind, one, other in each)

        made.prepare(mean)
        state = self._guide.tensors()
        pairs = [_swept(way, state, mean, None) for way in (self._way, made)]
        if not all(map(close, *pairs)):
            raise CompileError("a sweep that is cut where rows are summed comes to another result")

    def _hasten(self) -> None:
        """Look, before another sweep, whether it is time to compile."""
        way, looks = self._way, sum(self._job.source.sizes().values())
        if isinstance(way, _BySums):
            times = looks * max(1, self._sweeps)
            self._ladder.to_compiled(
                way.largest.graph, times, lambda: way.compile(self._ladder.builds)
            )


def _two_sizes(source: DataSource) -> tuple[Batch, Batch]:
    """A part of the usual size, and one of the last part's size, or of any other."""
    usual, *last = source.sizes()
    if usual == 1:
        raise CompileError("parts have one row")
    return source.head(usual), source.head(last[0] if last else usual - 1)


def _next(way: Way, state: Tensors, known: Sequence[Tensors], total: Total) -> Tensors:
    return total(way.asks(state, known), way.like(len(known)))


def _swept(way: Way, state: Tensors, total: Total, first: Tensors | None) -> Tensors:
    """The state after a sweep, whose first pass may have been made before."""
    known = [_next(way, state, [], total) if first is None else first]
    while len(known) < way.passes:
        known.append(_next(way, state, known, total))
    return way.new(state, known)


class _ByBlocks:
    """A pass for each block of factors, by the program itself."""

    def __init__(self, guide: SweptGuide) -> None:
        self._guide = guide

    @property
    def passes(self) -> int:
        return self._guide.passes

    def asks(self, state: Tensors, known: Sequence[Tensors]) -> OfPart:
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


class _BySums:
    """A captured sweep, cut where rows are summed: one pass, where no sum needs another first."""

    def __init__(self, guide: SweptGuide, job: Job, parts: tuple[Batch, Batch]) -> None:
        pairs = zip(*(part.tensors for part in parts), strict=True)
        self._rows = [n for n, (a, b) in enumerate(pairs) if a.shape != b.shape]
        captured = [self._captured(guide, job, part) for part in parts]
        cuts = cut(captured[0], captured[1], len(guide.tensors()))
        self._cuts = {part.size: own for part, own in zip(parts, cuts, strict=True)}
        self._cut: Cut = cuts[0]
        self._runs: dict[tuple[int | None, int], Captured | CompiledGraph] = {
            (size, number): graph
            for size, own in self._cuts.items()
            for number, graph in enumerate((*own.setups, *own.passes))
        }
        self._setups: list[Tensors] = []

    def _captured(self, guide: SweptGuide, job: Job, part: Batch) -> Captured:
        with job.handler(part):
            step = guide.stepper(part.args, part.kwargs)
            inputs = *guide.tensors(), *self._of(part)
            return capture(lambda: (torch.zeros(()), *step(None)), inputs)

    def _of(self, part: Batch) -> list[Tensor]:
        tensors = part.tensors
        return [tensors[number] for number in self._rows]

    def prepare(self, total: Total) -> None:
        """Make the sums that are the same in every sweep."""
        self._setups = []
        for number, shapes in enumerate(self._cut.shapes[: len(self._cut.setups)]):
            self._setups.append(total(self._program(number, ()), shapes))

    @property
    def largest(self) -> Captured:
        """The pass of most operations."""
        return max(self._cut.passes, key=lambda each: len(each.graph.graph.nodes))

    def compile(self, builds: Builds) -> None:
        """Compile the passes over parts of the usual size."""
        size = next(iter(self._cuts))
        for number, graph in enumerate(self._cut.passes, len(self._cut.setups)):
            self._runs[size, number] = compiled(graph, builds)

    @property
    def passes(self) -> int:
        return len(self._cut.passes)

    def asks(self, state: Tensors, known: Sequence[Tensors]) -> OfPart:
        return self._program(len(self._cut.setups) + len(known), state, known)

    def _program(self, number: int, state: Tensors, known: Sequence[Tensors] = ()) -> OfPart:
        sums = self._flat(known)
        return lambda part: self._runs[part.size, number](*state, *self._of(part), *sums)

    def like(self, number: int) -> Tensors:
        return self._cut.shapes[len(self._cut.setups) + number]

    def elbo(self, state: Tensors, first: Tensors) -> Tensor:
        return self._cut.first(*state, *self._flat([first]))[0]

    def new(self, state: Tensors, known: Sequence[Tensors]) -> Tensors:
        wrong, *new = self._cut.rest(*state, *self._flat(known))
        return tuple(each + wrong.to(each) for each in new)  # NaN where a decomposition failed

    def _flat(self, known: Sequence[Tensors]) -> list[Tensor]:
        return [each for own in (*self._setups, *known) for each in own]
