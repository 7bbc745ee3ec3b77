"""The loop: steps, a check of every number, callbacks and a progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from tqdm.auto import tqdm

from ppl_vi.data import Batch
from ppl_vi.optimization import Stepper
from ppl_vi.parameters import trainable
from ppl_vi.stopping import StopReason

OnNan = Literal["raise", "skip"]


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
    loss_and_grads: Callable[[Batch], float],
    batches: Iterator[Batch],
    stepper: Stepper,
    steps: int,
    callbacks: Sequence[Callback],
    on_nan: OnNan,
    blame: Callable[[Batch], str],
    bar: tqdm[None],
) -> tuple[list[float], StopReason]:
    """Take ``steps`` steps, or fewer if a callback asks.

    Args:
        loss_and_grads: the loss on a batch; it adds to the parameters' gradients.
        batches: without an end.
        stepper: moves the parameters.
        steps: how many to take.
        callbacks: told of every step.
        on_nan: ``"raise"`` an error on a loss or gradient that is not finite, or ``"skip"`` the step.
        blame: says which site is to blame on a batch whose loss is not finite.
        bar: shows the smoothed ELBO.

    Raises:
        FloatingPointError: a loss or a gradient is not finite, and ``on_nan`` is ``"raise"``.
    """
    losses: list[float] = []
    smoothed, shown = math.nan, bar.n
    for step in range(1, steps + 1):
        batch = next(batches)
        parameters = trainable()
        stepper.zero_grad(parameters)
        loss = _loss(loss_and_grads, batch)
        parameters = trainable()
        losses.append(loss)
        if _finite(loss, parameters):
            stepper.step(parameters, loss)
            smoothed = loss if math.isnan(smoothed) else smoothed + _SMOOTHING * (loss - smoothed)
        elif on_nan == "raise":
            raise FloatingPointError(_complaint(step, loss, parameters, blame(batch)))
        if step % _STEPS_PER_REFRESH == 0 or step == steps:
            bar.set_postfix_str(f"ELBO {-smoothed:.5g}", refresh=False)
            bar.update(shown + step - bar.n)
        told = Progress(step, loss, smoothed)
        if any([callback(told) for callback in callbacks]):  # every callback hears of every step
            return losses, StopReason.CALLBACK
    return losses, StopReason.STEPS


def _loss(loss_and_grads: Callable[[Batch], float], batch: Batch) -> float:
    """The loss, NaN where a matrix of the programs has no decomposition."""
    try:
        return loss_and_grads(batch)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, LinAlgError) or isinstance(error.__cause__, LinAlgError):
            return math.nan
        raise


def _finite(loss: float, parameters: Mapping[str, Tensor]) -> bool:
    gradients = [p.grad for p in parameters.values() if p.grad is not None and p.numel()]
    if not math.isfinite(loss) or not gradients:
        return math.isfinite(loss)
    # The largest entry: a sum of squares would overflow before the gradients do.
    norms = torch.stack(torch._foreach_norm(gradients, math.inf))
    return bool(torch.isfinite(norms).all())


def _complaint(step: int, loss: float, parameters: Mapping[str, Tensor], site: str) -> str:
    bad = [
        f"'{name}'"
        for name, parameter in parameters.items()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    gradients = f"; gradients that are not finite: {', '.join(bad)}" if bad else ""
    return (
        f"step {step}: {what}{site}{gradients}. Lower the learning rate, start nearer to the data "
        f"(initial_values), or pass on_nan='skip'."
    )
