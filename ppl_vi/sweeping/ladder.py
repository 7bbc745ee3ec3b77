"""How sweeps are made: by the program, by its operations alone, or by a library compiled from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from torch.fx import GraphModule
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.compilation import Builds, Execution, Mode, Wish, compile_seconds, repays
from ppl_vi.errors import CompileError
from ppl_vi.job import Job


class Ladder:
    """From the program to its operations alone, and on to a compiled library, as far as it repays.

    Args:
        job: whose sweeps these are. Where several processes have a part of it each, the ladder ends at
            the program.
        wish: ``False`` stays with the program; ``True`` climbs at once, or raises.
        reason: why sweeps are made by the program at first.
        bar: where to write what is done.

    Attributes:
        mode: the rung.
        wish: as given.
        ended: whether it goes no higher.
        builds: compiles.

    Raises:
        CompileError: sweeps are to be compiled, and cannot be.
    """

    def __init__(self, job: Job, wish: Wish, reason: str, bar: tqdm[None]) -> None:
        self.mode: Mode = "eager"
        self.wish, self.ended, self.builds = wish, wish is False, Builds()
        self._reason, self._bar = "compile=False" if self.ended else reason, bar
        if job.ranks.size > 1:
            self._reason = f"{job.ranks.size} processes sum within each sweep"
            if wish is True:
                raise CompileError(f"compile=True: {self._reason}. Leave compile out.")
            self.ended = True

    def execution(self, captures: int) -> Execution:
        """How sweeps were made, after so many captures."""
        builds = self.builds
        counts = captures, builds.compiled, builds.loaded, builds.seconds
        return Execution(self.mode, self._reason, *counts)

    def state(self, captures: int) -> State:
        """The rung, for another ladder to start from."""
        return {"execution": asdict(self.execution(captures)), "ended": self.ended}

    def go_on(self, state: State) -> None:
        """Stand where another one stood; what there is to stand on is for the caller to make."""
        told = Execution(**state["execution"])
        self.mode, self._reason, self.ended = told.mode, told.reason, state["ended"]

    @contextmanager
    def to_captured(self) -> Iterator[None]:
        """Whatever captures, inside."""
        with self._climbing():
            yield
            self.mode, self._reason = "captured", "more sweeps would have to repay compiling"

    def to_compiled(self, graph: GraphModule, times: int, build: Callable[[], None]) -> None:
        """Compile, where so many calls of a graph would have repaid that.

        Args:
            graph: that is called most.
            times: how often.
            build: compiles.
        """
        if self.ended or not (self.wish is True or repays(graph, times)):
            return
        self._tell(f"compiling the sweep (about {compile_seconds(graph):.0f} s)")
        with self._climbing():
            build()
            self.mode, self._reason, self.ended = "compiled", "", True

    @contextmanager
    def _climbing(self) -> Iterator[None]:
        """A rung that breaks is the end: of the ladder, or with ``compile=True`` of the fit."""
        try:
            yield
        except CompileError as reason:
            if self.wish is True:
                raise CompileError(
                    f"compile=True: {reason}. Correct it, or leave compile out."
                ) from reason.__cause__
            self._reason, self.ended = str(reason), True
            self._tell(f"sweeps stay {self.mode}, since {reason}")

    def _tell(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line)
