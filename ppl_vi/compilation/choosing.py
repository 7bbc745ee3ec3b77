"""Choose how the steps of a fit are taken: eager, captured or compiled."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import pyro.infer
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.checkpoints import State
from ppl_vi.compilation.blocks import BlockRunner
from ppl_vi.compilation.building import Builds
from ppl_vi.compilation.captured_loss import CapturedLoss
from ppl_vi.compilation.costs import FEW_STEPS, compile_seconds, repays
from ppl_vi.compilation.flat import can_be_flat
from ppl_vi.compilation.gradients import GradientGraph, GradientGraphs
from ppl_vi.compilation.products import choose, chosen
from ppl_vi.errors import CompileError, ProgramChangedError
from ppl_vi.job import Job
from ppl_vi.objectives import Objective
from ppl_vi.stepping.runners import EagerRunner, Runner, Taken

Wish = Literal["auto", True, False]
Mode = Literal["eager", "captured", "compiled"]

_MANY_NUMBERS = 20_000
"""Parameters' entries; so many are moved faster in place, by torch's own optimizers."""


@dataclass(frozen=True)
class Execution:
    """How the steps of a fit were taken.

    Attributes:
        mode: ``"eager"`` ran the programs in each step, ``"captured"`` their operations alone,
            ``"compiled"`` a library made from them.
        reason: why no more than that, in words.
        captures: how often the programs were captured, once for each shape of a batch.
        compilations: how many graphs a compiler worked on.
        loads: how many compiled graphs were found in memory or on disk.
        seconds: spent on compiling and loading.
        step_seconds: spent on the steps themselves.
    """

    mode: Mode
    reason: str = ""
    captures: int = 0
    compilations: int = 0
    loads: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.mode}: {self.reason}" if self.reason else self.mode


class Execute:
    """Takes the steps of a fit as fast as the wish, the programs and the machine allow.

    Args:
        wish: ``fit(compile=...)``.
        objective: of the fit.
        job: model, guide and data.
        parameters: the trainable ones, by name.
        eager: takes single steps.
        stops: whether a number that is not finite ends the fit.
        steps: how many are planned, over all restarts.
        tell: shows one line to the user.
        past: the state of another one, to go on as that did.

    Raises:
        CompileError: the wish is ``True``, or another one's steps were captured or compiled, and that
            cannot be done here.
    """

    def __init__(
        self,
        wish: Wish,
        objective: pyro.infer.ELBO,
        job: Job,
        parameters: Mapping[str, Tensor],
        eager: EagerRunner,
        stops: bool,
        steps: int,
        tell: Callable[[str], None],
        past: State = None,
    ) -> None:
        self._wish, self._steps, self._tell = wish, steps, tell
        self._past = past
        self._eager, self._plainly = eager, eager.loss_and_grads
        self._ranks = job.ranks.size
        self._builds, self._step_seconds = Builds(), 0.0
        self._graphs: GradientGraphs | None = None
        self._runner: Runner = eager
        self._mode: Mode = "eager"
        self._reason = "compile=False" if wish is False else ""
        if past is not None:
            self._reason = past["execution"]["reason"]
            self._steps = past["planned"]  # what repaid then is compiled now
            choose(past["products"])
        if past is not None and past["execution"]["mode"] == "eager":
            return
        if past is None and wish == "auto" and steps < FEW_STEPS:
            self._reason = f"{steps} steps are too few to repay a capture"
        elif wish is not False:
            try:
                self._graphs = self._capture(objective, job, parameters)
                self._choose(self._graphs, stops)
            except CompileError as reason:
                self._fall_back(reason)

    @property
    def block(self) -> int:
        """How many steps it takes at best in one go."""
        return self._runner.block

    @property
    def execution(self) -> Execution:
        """How the steps were taken so far."""
        builds = self._builds
        captures = self._graphs.captures if self._graphs else 0
        return Execution(
            self._mode,
            self._reason,
            captures,
            builds.compiled,
            builds.loaded,
            builds.seconds,
            self._step_seconds,
        )

    def state(self) -> State:
        """All that is not in the parameters, for another one to go on with."""
        if isinstance(self._runner, BlockRunner):
            self._runner.hand_over()
        return {
            "eager": self._eager.state(),
            "execution": asdict(self.execution),
            "planned": self._steps,
            "products": chosen(),
        }

    def advance(self, count: int) -> list[Taken]:
        """Take up to ``count`` steps; eager ones where the programs turn out to have changed."""
        started = time.perf_counter()
        try:
            return self._runner.advance(count)
        except CompileError as reason:
            self._fall_back(reason)
            return self._runner.advance(count)
        finally:
            self._step_seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Look once more whether the programs are still those that were captured."""
        if self._graphs is None or self._mode == "eager":
            return
        try:
            self._graphs.check(self._eager.stream.look(), self._eager.done)
        except CompileError as reason:
            self._reason = str(reason)
            warnings.warn(f"{self._mode} steps: {reason}.", stacklevel=2)

    def _capture(
        self, objective: pyro.infer.ELBO, job: Job, parameters: Mapping[str, Tensor]
    ) -> GradientGraphs:
        if not isinstance(objective, Objective):
            name = type(objective).__name__
            raise CompileError(
                f"the objective pyro.infer.{name} turns its loss into a Python number in each step; "
                f"ppl_vi's own do not"
            )
        return GradientGraphs(objective, job, parameters)

    def _choose(self, graphs: GradientGraphs, stops: bool) -> None:
        """Capture the step, and compile it if that is wished or repays, or as it was before."""
        graph = graphs.of(self._eager.stream.look())
        was = self._past and self._past["execution"]["mode"]
        worth = self._is_worth(graph.captured.graph) if was is None else was == "compiled"
        builds = self._builds if worth else None
        try:
            self._take(graphs, graph, stops, builds)
        except CompileError as reason:
            if self._wish is True or builds is None or self._past is not None:
                raise
            self._tell(f"not compiled, since {reason}")
            self._reason = str(reason)
            self._take(graphs, graph, stops, None)

    def _take(
        self, graphs: GradientGraphs, graph: GradientGraph, stops: bool, builds: Builds | None
    ) -> None:
        """Take whole blocks of steps, or else the loss alone."""
        live = [graph.parameters[i] for i in graph.used]
        few = builds is not None or sum(tensor.numel() for tensor in live) < _MANY_NUMBERS
        if self._ranks > 1:
            between = f"{self._ranks} processes sum their gradients between steps"
            if between not in self._reason:  # as it is where a fit goes on
                self._reason = f"{self._reason}; {between}" if self._reason else between
            few = False
        if few and self._eager.stream.by_rows and can_be_flat(live, self._eager.stepper):
            self._runner = BlockRunner(graphs, self._eager, stops, builds, self._repays)
        else:
            loss = CapturedLoss(graphs, builds)
            loss.prepare(self._eager.stream.look())
            self._eager.loss_and_grads = loss
        self._mode = "compiled" if builds else "captured"

    def _is_worth(self, graph: GraphModule) -> bool:
        """Whether to compile; says how long it will take, or why not."""
        seconds = compile_seconds(graph)
        if self._repays(graph):
            self._tell(f"compiling the step (about {seconds:.0f} s, less if done before)")
            return True
        self._reason = f"{self._steps} steps do not repay about {seconds:.0f} s of compiling"
        return False

    def _repays(self, graph: GraphModule, share: float = 1.0) -> bool:
        return self._wish is True or repays(graph, int(share * self._steps))

    def _fall_back(self, reason: CompileError) -> None:
        if self._past is not None and self._mode == "eager":
            raise CompileError(
                f"the steps before these were {self._past['execution']['mode']}, which is not possible "
                f"here: {reason}. Resume where it was, or begin anew."
            ) from reason
        if self._wish is True:
            remedy = "Correct it, or pass compile='auto' to run such steps eager."
            changed = isinstance(reason, ProgramChangedError)  # it names its own remedy
            raise CompileError(
                f"compile=True: {reason}." if changed else f"compile=True: {reason}. {remedy}"
            ) from reason.__cause__
        self._tell(f"running eager, since {reason}")
        if isinstance(reason, ProgramChangedError):  # what is wrong is said to everyone
            warnings.warn(f"{self._mode} steps, now eager: {reason}.", stacklevel=2)
        if isinstance(self._runner, BlockRunner):
            self._runner.hand_over()
        self._eager.loss_and_grads = self._plainly
        self._runner, self._mode, self._reason = self._eager, "eager", str(reason)
