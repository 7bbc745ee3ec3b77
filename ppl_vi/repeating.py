"""How sweeps are made: by the program, by its operations alone, or by a library compiled from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.compilation import (
    Builds,
    Captured,
    CompiledGraph,
    Execution,
    Mode,
    Wish,
    capture,
    compile_seconds,
    compiled,
    folded,
    repays,
)
from ppl_vi.data.sources import Batch
from ppl_vi.errors import CompileError
from ppl_vi.job import Job

if TYPE_CHECKING:
    from ppl_vi.sweeping import SweptGuide

_PLAIN = 5
"""Sweeps before they are captured, which takes as long as four: many fits are done by then."""


def stays_eager(job: Job, wish: Wish) -> str:
    """Why sweeps are neither captured nor compiled; empty where they may be.

    Raises:
        CompileError: they are to be compiled, and cannot be.
    """
    if job.ranks.size == 1:
        return ""
    reason = f"{job.ranks.size} processes sum within each sweep"
    if wish is True:
        raise CompileError(f"compile=True: {reason}. Leave compile out.")
    return reason


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
        self._guide, self._job, self._steps, self._wish, self._bar = guide, job, steps, wish, bar
        self._builds = Builds()
        self._captured: Captured | None = None
        self._repeat: Captured | CompiledGraph | None = None
        self._size: int | None = None
        self._mode: Mode = "eager"
        self._reason = "compile=False" if wish is False else "few sweeps"
        self._done_with = wish is False
        if reason := stays_eager(job, wish):
            self._reason, self._done_with = reason, True

    @property
    def execution(self) -> Execution:
        """How sweeps were made."""
        builds, captures = self._builds, int(self._captured is not None)
        counts = captures, builds.compiled, builds.loaded, builds.seconds
        return Execution(self._mode, self._reason, *counts)

    def state(self) -> State:
        """How sweeps are made, for another one to make them alike."""
        return {
            "execution": asdict(self.execution),
            "size": self._size,
            "done_with": self._done_with,
        }

    def go_on(self, state: State) -> None:
        """Make sweeps as another one did.

        Raises:
            CompileError: they were captured or compiled, and cannot be here.
        """
        told = Execution(**state["execution"])
        self._mode, self._reason, self._done_with = told.mode, told.reason, state["done_with"]
        if told.mode == "eager":
            return
        batch = None if state["size"] is None else self._job.source.head(state["size"])
        rate = torch.tensor(1.0, dtype=torch.get_default_dtype())
        self._repeat = self._captured = self._capture(batch, rate)
        if told.mode == "compiled":
            self._repeat = compiled(self._captured, self._builds)

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
        if self._done_with:
            return
        try:
            if self._captured is None and (done >= _PLAIN or self._wish is True):
                self._repeat = self._captured = self._capture(batch, rate)
                self._mode, self._reason = "captured", "more sweeps would have to repay compiling"
            if self._captured is not None and self._repays(self._captured.graph, done):
                self._tell(
                    f"compiling the sweep (about {compile_seconds(self._captured.graph):.0f} s)"
                )
                self._repeat = compiled(self._captured, self._builds)
                self._mode, self._reason, self._done_with = "compiled", "", True
        except CompileError as reason:
            if self._wish is True:
                raise CompileError(
                    f"compile=True: {reason}. Correct it, or leave compile out."
                ) from reason.__cause__
            self._reason, self._done_with = str(reason), True
            self._tell(f"sweeps stay {self._mode}, since {reason}")

    def _capture(self, batch: Batch | None, rate: Tensor) -> Captured:
        guide = self._guide
        if guide.searched:
            raise CompileError(guide.searched)
        if batch is None:
            return folded(capture(guide.swept, guide.tensors()))
        self._size = batch.size
        with self._job.handler(batch):
            step = guide.stepper(batch.args, batch.kwargs)
            return capture(lambda: step(rate), (*guide.tensors(), *batch.tensors, rate))

    def _repays(self, graph: GraphModule, done: int) -> bool:
        """Whether the sweeps that were made would have repaid it, and as many may come."""
        return self._wish is True or repays(graph, min(done, self._steps - done))

    def _tell(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line)
