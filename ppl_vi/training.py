"""The loop: steps, callbacks and a progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.ranks.group import ALONE, Ranks
from ppl_vi.stepping.runners import Runner
from ppl_vi.stopping.interrupting import interruptible
from ppl_vi.stopping.reasons import StopReason
from ppl_vi.stopping.watching import EVERY, Watch


@dataclass(frozen=True)
class Progress:
    """What a callback is told after a step.

    Attributes:
        step: the number of steps done.
        loss: minus the objective's estimate in this step.
        smoothed_loss: an exponentially weighted mean of the losses so far.
    """

    step: int
    loss: float
    smoothed_loss: float


Callback = Callable[[Progress], bool | None]
"""Called after every step, inside the fit's parameter scope; ``True`` stops the fit."""

Keep = Callable[[int, bool], None]
"""Called between two steps with how many were taken, and whether no more will be."""

_SMOOTHING = 0.02
_STEPS_PER_REFRESH = 20


@dataclass
class Past:
    """The steps that a fit has taken.

    Attributes:
        losses: of each.
        smoothed_loss: an exponentially weighted mean of those that are finite.
        reason: why no more of them were taken; ``None`` while they are.
    """

    losses: list[float] = field(default_factory=list)
    smoothed_loss: float = math.nan
    reason: StopReason | None = None

    def add(self, loss: float, finite: bool) -> None:
        """One more step."""
        self.losses.append(loss)
        if finite:
            before = loss if math.isnan(self.smoothed_loss) else self.smoothed_loss
            self.smoothed_loss = before + _SMOOTHING * (loss - before)

    def asks_to_stop(self, callbacks: Sequence[Callback]) -> bool:
        """Tell callbacks of the last step; whether one of them wants no more."""
        told = Progress(len(self.losses), self.losses[-1], self.smoothed_loss)
        return any([callback(told) for callback in callbacks])  # every callback hears of every step

    def stays_ended(self, callbacks: Sequence[Callback]) -> bool:
        """Whether a fit that goes on here has converged; a callback that stopped it is asked again."""
        if self.reason is StopReason.CALLBACK:
            return self.asks_to_stop(callbacks)
        return self.reason is StopReason.CONVERGED

    def state(self) -> State:
        """For a fit that goes on."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        reason = self.reason and self.reason.name
        return {"losses": losses, "smoothed": self.smoothed_loss, "reason": reason}

    @classmethod
    def of(cls, state: State) -> Past:
        """From what ``state`` gave."""
        reason = state["reason"] and StopReason[state["reason"]]
        return cls(state["losses"].tolist(), state["smoothed"], reason)


def train(
    runner: Runner,
    steps: int,
    callbacks: Sequence[Callback],
    bar: tqdm[None],
    watch: Watch,
    past: Past,
    keep: Keep,
    ranks: Ranks = ALONE,
) -> None:
    """Take steps until there are ``steps``, or fewer if a callback, a rule or a person asks.

    Args:
        runner: takes the steps, in blocks where nobody listens to each of them.
        steps: how many to take in all.
        callbacks: told of every step.
        bar: shows the smoothed ELBO.
        watch: sees the losses, and may lower the learning rate or stop.
        past: the steps before these; those that are taken are added, and why there are no more.
        keep: called where a fit can be cut without a trace.
        ranks: the processes, which stop together.

    Raises:
        FloatingPointError: a loss or a gradient is not finite, where the runner is told to raise.
    """
    past.reason, shown = None, bar.n - len(past.losses)
    with interruptible() as interrupted:
        try:
            while past.reason is None:
                _take_block(runner, steps, callbacks, past)
                step = len(past.losses)
                refreshes = step % _STEPS_PER_REFRESH == 0 or step == steps
                if refreshes:
                    bar.set_postfix_str(f"ELBO {-past.smoothed_loss:.5g}", refresh=False)
                    bar.update(shown + step - bar.n)
                if callbacks or refreshes or ranks.size == 1:  # asking others takes time
                    past.reason = asked(callbacks, past, interrupted, ranks)
                past.reason = past.reason or judged(past, steps, watch)
                keep(step, past.reason is not None)
        except KeyboardInterrupt:  # a second Ctrl-C, or a first one that someone else handles
            if not past.losses or ranks.size > 1:
                raise
            past.reason = StopReason.INTERRUPTED


def judged(past: Past, steps: int, watch: Watch) -> StopReason | None:
    """Why to take no more steps, as the losses tell; ``None`` to go on."""
    losses = past.losses
    if len(losses) - watch.step == EVERY and watch.sees(losses[-EVERY:]):
        return StopReason.CONVERGED
    return StopReason.STEPS if len(losses) >= steps else None


def _take_block(runner: Runner, steps: int, callbacks: Sequence[Callback], past: Past) -> None:
    done = len(past.losses)
    block = 1 if callbacks else runner.block - done % runner.block
    for loss, finite in runner.advance(min(block, steps - done)):
        past.add(loss, finite)


def asked(
    callbacks: Sequence[Callback],
    past: Past,
    interrupted: Callable[[], bool],
    ranks: Ranks = ALONE,
) -> StopReason | None:
    """Why to take no more steps, as callbacks or a person ask, of any of the processes."""
    try:
        flags = past.asks_to_stop(callbacks), interrupted()
    except KeyboardInterrupt:  # a callback's own
        flags = False, True
    called, stopped = ranks.any(*flags)
    if called:
        return StopReason.CALLBACK
    return StopReason.INTERRUPTED if stopped else None
