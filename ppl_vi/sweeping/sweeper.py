"""Sweeps of exact updates, until the ELBO rises no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.compilation import Execution, Wish
from ppl_vi.data.streaming import Stream
from ppl_vi.errors import GuideError
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.objectives import ELBO
from ppl_vi.stopping.convergence import Tolerance
from ppl_vi.stopping.interrupting import interruptible
from ppl_vi.stopping.reasons import Convergence, StopReason
from ppl_vi.sweeping.dividing import divided
from ppl_vi.sweeping.guides import SweptGuide
from ppl_vi.sweeping.repeated import Repeated
from ppl_vi.sweeping.streamed import Streamed
from ppl_vi.training import Callback, Keep, Past, asked

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
"""Of the ELBO's own size; less than that is rounding."""
_PASS_TOLERANCE = 1e-5
"""Likewise, of the mean over one pass from that over the pass before."""


class Swept(NamedTuple):
    """What came of sweeps.

    Attributes:
        losses: minus the ELBO after each sweep, exact; on minibatches as each batch tells it.
        convergence: why they stopped, and the last rise.
        execution: how they were made.
        bound: the ELBO on all rows, exact, or with its standard error where sites have draws.
    """

    losses: list[float]
    convergence: Convergence
    execution: Execution
    bound: Estimate


def check_settings(objective: Any, optimizer: Any, kl_schedule: Any) -> None:
    """Raise GuideError for settings of ``fit`` that mean nothing to exact updates."""
    reasons = {
        "objective": (type(objective) is not ELBO, "maximise the ELBO alone"),
        "optimizer": (optimizer is not None, "have no learning rate"),
        "kl_schedule": (kl_schedule is not None, "have no weights on KL terms"),
    }
    for setting, (given, reason) in reasons.items():
        if given:
            raise GuideError(f"{setting}: exact updates {reason}. Leave {setting} out.")


class Sweeper:
    """Sweeps until the ELBO rises no more, or so many sweeps are done.

    With minibatches a step takes one of them, and the ELBO is compared pass by pass.

    Args:
        guide: at its start.
        job: the guide with its data.
        steps: the most sweeps or steps.
        tol: a rise in nats at which to stop, ``"auto"`` for one that may be rounding, ``None`` to make
            all sweeps.
        wish: whether they are compiled.
        callbacks: told of every one.
        bar: shows the ELBO.

    Attributes:
        past: the sweeps that were made.
    """

    def __init__(
        self,
        guide: SweptGuide,
        job: Job,
        steps: int,
        tol: Tolerance | None,
        wish: Wish,
        callbacks: Sequence[Callback],
        bar: tqdm[None],
    ) -> None:
        self._guide, self._job, self._steps, self._tol = guide, job, steps, tol
        self._callbacks, self._bar = callbacks, bar
        streamed, batched = job.source.in_parts, job.source.batched
        self._sweeps: Repeated | Streamed = (
            Streamed(guide, job, wish, bar) if streamed else Repeated(guide, job, steps, wish, bar)
        )
        self._stream = Stream(job.source) if batched and not streamed else None
        self._size = sum(job.source.sizes().values()) if self._stream else 1
        self.past = Past()

    def state(self) -> State:
        """All that is not in the guide and the parameters, for another one to go on with."""
        return {
            "past": self.past.state(),
            "sweeps": self._sweeps.state(),
            "stream": self._stream and self._stream.state(),
        }

    def go_on(self, state: State) -> None:
        """Go on where another one was.

        Raises:
            CompileError: sweeps were captured or compiled, and cannot be here.
        """
        self.past = Past.of(state["past"])
        self._sweeps.go_on(state["sweeps"])
        if self._stream is not None:
            self._stream.go_on(state["stream"])

    def run(self, keep: Keep) -> Swept:
        """Make the sweeps.

        Args:
            keep: called after each of them.

        Raises:
            CompileError: they are to be compiled, and cannot be.
            FloatingPointError: the ELBO is not finite.
        """
        past = self.past
        if not past.stays_ended(self._callbacks):
            past.reason = self._judged()
        ranks = self._job.ranks
        with interruptible() as interrupted, divided(self._job):
            try:
                while past.reason is None:
                    self._sweep()
                    told = asked(self._callbacks, past, interrupted, ranks)
                    past.reason = told or self._judged()
                    keep(len(past.losses), past.reason is not None)
            except KeyboardInterrupt:
                if not past.losses or ranks.size > 1:
                    raise
                past.reason = StopReason.INTERRUPTED
            self._guide.settle()
            bound = self._guide.evaluated(-past.losses[-1])
        return self._told(bound)

    def _sweep(self) -> None:
        done, guide = len(self.past.losses), self._guide
        if isinstance(self._sweeps, Streamed):
            loss = -self._sweeps.advance()
        else:
            rate = (done + 1 + guide.delay) ** -guide.forgetting
            batch = next(self._stream) if self._stream else None
            loss = -self._sweeps.advance(done, batch, rate)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"sweep {done + 1}: the ELBO is {-loss}{_broken(guide)}. Look for values that no site "
                f"can have (a scale below zero, data too large to square), or start nearer to the data "
                f"(initial_values)."
            )
        self.past.losses.append(loss)
        self.past.smoothed_loss = loss
        self._bar.set_postfix_str(f"ELBO {-loss:.6g}", refresh=False)
        self._bar.update()

    def _judged(self) -> StopReason | None:
        """Why to make no more sweeps, as the ELBO tells; ``None`` to go on."""
        losses, whole = self.past.losses, len(self.past.losses) % self._size == 0
        if self._tol is not None and whole and _rests(losses, self._size, self._tol):
            return StopReason.CONVERGED
        return StopReason.STEPS if len(losses) >= self._steps else None

    def _told(self, bound: Estimate) -> Swept:
        guide, size, losses = self._guide, self._size, self.past.losses
        reason = self.past.reason or StopReason.STEPS
        if reason is StopReason.STEPS and self._tol is not None and size == 1 and len(losses) > 1:
            reason = StopReason.CLIMBING
        if self._job.source.batched:
            over_batches = Estimate(bound_by_batches(guide, self._job))  # counts elements too
            bound = over_batches if self._stream else bound
        guide.add_up(self._job.ranks.sum)
        gain = _rise(losses, size) if len(losses) >= 2 * size else math.nan
        convergence = Convergence(reason, None, gain, 0.0 if size == 1 else math.nan)
        return Swept(losses, convergence, self._sweeps.execution, bound)


def _broken(guide: SweptGuide) -> str:
    names = ", ".join(f"'{name}'" for name in guide.not_finite())
    return f"; factors that are not finite: {names}" if names else ""


def _rise(losses: Sequence[float], size: int) -> float:
    """Of the mean ELBO over the last pass, of so many losses, from that over the pass before."""
    return (sum(losses[-2 * size : -size]) - sum(losses[-size:])) / size


def _rests(losses: Sequence[float], size: int, tol: Tolerance) -> bool:
    """Whether the last pass over the data came to no more than the pass before."""
    if len(losses) < 2 * size:
        return False
    if tol != "auto":
        return _rise(losses, size) <= tol
    exact = _TOLERANCE.get(torch.get_default_dtype(), 1e-6)
    last = sum(losses[-size:]) / size
    return _rise(losses, size) <= (exact if size == 1 else _PASS_TOLERANCE) * (1 + abs(last))


def bound_by_batches(guide: SweptGuide, job: Job) -> float:
    """The exact ELBO on all rows, batch by batch; to be asked once after ``settle``."""
    total = 0.0
    for pair, share, handler in job.weighted_pairs():
        with handler:
            total += share * guide.bound(pair.args, pair.kwargs, share).item()
    return float(job.ranks.sum(torch.tensor(total, dtype=torch.float64)))
