"""Guides that are fitted by sweeps of exact updates, not by gradient steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.fx import GraphModule
from tqdm.auto import tqdm

from ppl_vi.compilation import Builds, Captured, Execution, Mode, Wish, compile_seconds, repays
from ppl_vi.errors import CompileError, GuideError
from ppl_vi.objectives import ELBO
from ppl_vi.stopping import StopReason
from ppl_vi.training import Callback, Progress

_PLAIN_SWEEPS = 5
"""Before they are captured, which takes as long as four: many fits are done by then."""
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
"""Of the ELBO's own size; less than that is rounding."""


@runtime_checkable
class SweptGuide(Protocol):
    """A guide whose parameters are set by coordinate ascent."""

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Tensor]
    ) -> None:
        """Set the parameters to a start: at values of sites where these are given, else at random.

        Raises:
            ModelError: the model does not allow of exact updates; the message names the site.
        """

    def sweep(self) -> float:
        """Update every factor once; gives the exact ELBO after that."""

    def capture(self) -> Captured:
        """Repeat the operations of a sweep from now on, without the program around them.

        Raises:
            CompileError: they cannot be repeated.
        """

    def compile(self, builds: Builds) -> None:
        """Run the captured operations as a compiled library from now on.

        Raises:
            CompileError: they cannot be compiled.
        """

    def settle(self) -> None:
        """Set what sweeps leave out, after the last of them."""


def is_swept(guide: Any) -> TypeGuard[SweptGuide]:
    """Whether a guide is fitted by sweeps."""
    return isinstance(guide, SweptGuide)


def check_settings(objective: Any, optimizer: Any, batched: bool) -> None:
    """Raise GuideError for settings of ``fit`` that mean nothing to exact updates."""
    reasons = {
        "objective": (type(objective) is not ELBO, "maximise the ELBO alone"),
        "optimizer": (optimizer is not None, "have no learning rate"),
        "batch_size": (batched, "need all rows at once"),
    }
    for setting, (given, reason) in reasons.items():
        if given:
            raise GuideError(f"{setting}: exact updates {reason}. Leave {setting} out.")


def sweep_to_rest(
    guide: SweptGuide, steps: int, wish: Wish, callbacks: Sequence[Callback], bar: tqdm[None]
) -> tuple[list[float], StopReason, Execution]:
    """Sweep until the ELBO rises no more, or ``steps`` sweeps are done.

    Args:
        guide: at its start.
        steps: the most sweeps.
        wish: whether sweeps are compiled; ``"auto"`` captures them after the first few, and compiles
            them after as many as would have repaid that.
        callbacks: told of every sweep.
        bar: shows the ELBO.

    Returns:
        Minus the exact ELBO after each sweep, why it stopped, and how sweeps were made.

    Raises:
        CompileError: the wish is ``True``, and sweeps cannot be compiled.
        FloatingPointError: the ELBO is not finite.
    """
    losses: list[float] = []
    tolerance = _TOLERANCE.get(torch.get_default_dtype(), 1e-6)
    reason = StopReason.STEPS
    faster = _Faster(guide, steps, wish, bar)
    while len(losses) < steps and reason is StopReason.STEPS:
        faster.before(len(losses))
        losses.append(-guide.sweep())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"sweep {len(losses)}: the ELBO is {-losses[-1]}. Look for values that no site can "
                f"have (a scale below zero), or start nearer to the data (initial_values)."
            )
        bar.set_postfix_str(f"ELBO {-losses[-1]:.6g}", refresh=False)
        bar.update()
        told = Progress(len(losses), losses[-1], losses[-1])
        if any([callback(told) for callback in callbacks]):
            reason = StopReason.CALLBACK
        elif len(losses) > 1 and losses[-2] - losses[-1] <= tolerance * (1 + abs(losses[-1])):
            reason = StopReason.CONVERGED
    guide.settle()
    return losses, reason, faster.execution


class _Faster:
    """Has sweeps captured, and compiled, when that repays."""

    def __init__(self, guide: SweptGuide, steps: int, wish: Wish, bar: tqdm[None]) -> None:
        self._guide, self._steps, self._wish, self._bar = guide, steps, wish, bar
        self._builds = Builds()
        self._graph: GraphModule | None = None
        self._mode: Mode = "eager"
        self._reason = "compile=False" if wish is False else "few sweeps"
        self._given_up = wish is False

    @property
    def execution(self) -> Execution:
        """How sweeps were made."""
        builds, captures = self._builds, int(self._graph is not None)
        counts = captures, builds.compiled, builds.loaded, builds.seconds
        return Execution(self._mode, self._reason, *counts)

    def before(self, done: int) -> None:
        """Look, before another sweep, whether it is time."""
        if self._given_up:
            return
        try:
            if self._mode == "eager" and (done == _PLAIN_SWEEPS or self._wish is True):
                self._graph = self._guide.capture().graph
                self._mode, self._reason = "captured", "more sweeps would have to repay compiling"
            if self._mode == "captured" and self._graph and self._repays(self._graph, done):
                self._tell(f"compiling the sweep (about {compile_seconds(self._graph):.0f} s)")
                self._guide.compile(self._builds)
                self._mode, self._reason, self._given_up = "compiled", "", True
        except CompileError as reason:
            if self._wish is True:
                raise CompileError(
                    f"compile=True: {reason}. Correct it, or leave compile out."
                ) from reason.__cause__
            self._reason, self._given_up = str(reason), True
            self._tell(f"sweeps stay {self._mode}, since {reason}")

    def _repays(self, graph: GraphModule, done: int) -> bool:
        """Whether the sweeps that were made would have repaid it, and as many may come."""
        return self._wish is True or repays(graph, min(done, self._steps - done))

    def _tell(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line)
