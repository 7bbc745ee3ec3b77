"""The loop: steps, callbacks and a progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from ppl_vi.ranks.group import ALONE, Ranks
from ppl_vi.stepping.runners import Runner
from ppl_vi.stopping.interrupting import interruptible
from ppl_vi.stopping.reasons import Convergence, StopReason
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

_ASKED = (StopReason.CALLBACK, StopReason.INTERRUPTED)
_SMOOTHING = 0.02
_STEPS_PER_REFRESH = 20


def train(
    runner: Runner,
    steps: int,
    callbacks: Sequence[Callback],
    bar: tqdm[None],
    watch: Watch,
    ranks: Ranks = ALONE,
) -> tuple[list[float], Convergence]:
    """Take ``steps`` steps, or fewer if a callback, a rule or a person asks.

    Args:
        runner: takes the steps, in blocks where nobody listens to each of them.
        steps: how many to take.
        callbacks: told of every step.
        bar: shows the smoothed ELBO.
        watch: sees the losses, and may lower the learning rate or stop.
        ranks: the processes, which stop together.

    Raises:
        FloatingPointError: a loss or a gradient is not finite, where the runner is told to raise.
    """
    losses: list[float] = []
    with interruptible() as interrupted:
        try:
            reason = _stepped(losses, runner, steps, callbacks, bar, watch, interrupted, ranks)
        except KeyboardInterrupt:  # a callback's own, or a second Ctrl-C
            if not losses or ranks.size > 1:
                raise
            reason = StopReason.INTERRUPTED
    return losses, watch.told(reason)


def _stepped(
    losses: list[float],
    runner: Runner,
    steps: int,
    callbacks: Sequence[Callback],
    bar: tqdm[None],
    watch: Watch,
    interrupted: Callable[[], bool],
    ranks: Ranks,
) -> StopReason:
    """Take the steps, and say why no more of them."""
    smoothed, shown = math.nan, bar.n
    while len(losses) < steps:
        block = 1 if callbacks else runner.block - len(losses) % runner.block
        for loss, finite in runner.advance(min(block, steps - len(losses))):
            losses.append(loss)
            if finite:
                smoothed = (
                    loss if math.isnan(smoothed) else smoothed + _SMOOTHING * (loss - smoothed)
                )
        step = len(losses)
        refreshes = step % _STEPS_PER_REFRESH == 0 or step == steps
        if refreshes:
            bar.set_postfix_str(f"ELBO {-smoothed:.5g}", refresh=False)
            bar.update(shown + step - bar.n)
        told = Progress(step, losses[-1], smoothed)
        called = any([callback(told) for callback in callbacks])  # all of them hear of every step
        if callbacks or refreshes or ranks.size == 1:  # asking others takes time
            for is_so, reason in zip(ranks.any(called, interrupted()), _ASKED, strict=True):
                if is_so:
                    return reason
        if step % EVERY == 0 and watch.sees(losses[-EVERY:]):
            return StopReason.CONVERGED
    return StopReason.STEPS
