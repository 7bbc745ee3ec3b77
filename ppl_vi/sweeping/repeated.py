"""Sweeps over all rows at once, or steps on minibatches."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.compilation import (
    Captured,
    CompiledGraph,
    Execution,
    Wish,
    capture,
    compiled,
    folded,
)
from ppl_vi.data.sources import Batch
from ppl_vi.errors import CompileError
from ppl_vi.job import Job
from ppl_vi.sweeping.guides import SweptGuide
from ppl_vi.sweeping.ladder import Ladder

_PLAIN = 5
"""Sweeps before they are captured, which takes as long as four: many fits are done by then."""


class Repeated:
    """Makes sweeps, or steps on minibatches, as fast as it repays.

    Args:
        guide: that is swept.
        job: the guide with its data.
        steps: the most sweeps that will come.
        wish: ``"auto"`` captures them after the first few, and compiles them after as many as would
            have repaid that; ``True`` does both at once.
        bar: where to write what is done.
    """

    def __init__(
        self, guide: SweptGuide, job: Job, steps: int, wish: Wish, bar: tqdm[None]
    ) -> None:
        self._guide, self._job, self._steps = guide, job, steps
        self._ladder = Ladder(job, wish, "few sweeps", bar)
        self._captured: Captured | None = None
        self._repeat: Captured | CompiledGraph | None = None
        self._size: int | None = None

    @property
    def execution(self) -> Execution:
        """How sweeps were made."""
        return self._ladder.execution(self._captures)

    @property
    def _captures(self) -> int:
        return int(self._captured is not None)

    def state(self) -> State:
        """How sweeps are made, for another one to make them alike."""
        return {"ladder": self._ladder.state(self._captures), "size": self._size}

    def go_on(self, state: State) -> None:
        """Make sweeps as another one did.

        Raises:
            CompileError: they were captured or compiled, and cannot be here.
        """
        self._ladder.go_on(state["ladder"])
        if self._ladder.mode == "eager":
            return
        batch = None if state["size"] is None else self._job.source.head(state["size"])
        self._capture(batch, torch.tensor(1.0, dtype=torch.get_default_dtype()))
        if self._ladder.mode == "compiled":
            self._compile()

    def advance(self, done: int, batch: Batch | None, rate: float) -> float:
        """One more sweep.

        Args:
            done: how many came before.
            batch: the rows of a step; ``None`` for a sweep over all of them.
            rate: the size of the step.

        Returns:
            The ELBO, in nats.

        Raises:
            CompileError: sweeps are to be compiled, and cannot be.
        """
        size = torch.tensor(rate, dtype=torch.get_default_dtype())
        self._hasten(done, batch, size)
        others = () if batch is None else (*batch.tensors, size)
        if self._repeat is not None and (batch is None or batch.size == self._size):
            elbo, *new = self._repeat(*self._guide.tensors(), *others)
        else:
            elbo, *new = self._plainly(batch, size)
        self._guide.adopt(new)
        return elbo.item()

    def _plainly(self, batch: Batch | None, rate: Tensor) -> tuple[Tensor, ...]:
        if batch is None:
            return self._guide.swept()
        with self._job.handler(batch):
            return self._guide.stepper(batch.args, batch.kwargs, batch.part)(rate)

    def _hasten(self, done: int, batch: Batch | None, rate: Tensor) -> None:
        """Look, before another sweep, whether it is time to capture or to compile."""
        ladder = self._ladder
        if ladder.ended:
            return
        if self._captured is None and (done >= _PLAIN or ladder.wish is True):
            with ladder.to_captured():
                self._capture(batch, rate)
        if self._captured is not None:  # as many sweeps may come as were made
            times = min(done, self._steps - done)
            ladder.to_compiled(self._captured.graph, times, self._compile)

    def _capture(self, batch: Batch | None, rate: Tensor) -> None:
        guide = self._guide
        if guide.searched:
            raise CompileError(guide.searched)
        if batch is None:
            made = folded(capture(guide.swept, guide.tensors()))
        else:
            self._size = batch.size
            with self._job.handler(batch):
                step = guide.stepper(batch.args, batch.kwargs)
                made = capture(lambda: step(rate), (*guide.tensors(), *batch.tensors, rate))
        self._repeat = self._captured = made

    def _compile(self) -> None:
        if self._captured is not None:
            self._repeat = compiled(self._captured, self._ladder.builds)
