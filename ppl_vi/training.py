"""The loop: steps, callbacks and a progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from ppl_vi.runners import Runner
from ppl_vi.stopping import StopReason


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

_SMOOTHING = 0.02
_STEPS_PER_REFRESH = 20


def train(
    runner: Runner, steps: int, callbacks: Sequence[Callback], bar: tqdm[None]
) -> tuple[list[float], StopReason]:
    """Take ``steps`` steps, or fewer if a callback asks.

    Args:
        runner: takes the steps, in blocks where nobody listens to each of them.
        steps: how many to take.
        callbacks: told of every step.
        bar: shows the smoothed ELBO.

    Raises:
        FloatingPointError: a loss or a gradient is not finite, where the runner is told to raise.
    """
    losses: list[float] = []
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
        if step % _STEPS_PER_REFRESH == 0 or step == steps:
            bar.set_postfix_str(f"ELBO {-smoothed:.5g}", refresh=False)
            bar.update(shown + step - bar.n)
        told = Progress(step, losses[-1], smoothed)
        if any([callback(told) for callback in callbacks]):  # every callback hears of every step
            return losses, StopReason.CALLBACK
    return losses, StopReason.STEPS
