"""Who takes the steps of a fit: one by one here, in compiled blocks elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NoReturn, Protocol

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppl_vi.checkpoints import State
from ppl_vi.data.sources import Batch
from ppl_vi.data.streaming import Stream
from ppl_vi.parameters import trainable
from ppl_vi.ranks.steps import SumOfSteps
from ppl_vi.scheduling import Scheduled
from ppl_vi.stepping.moments import SETTLED_EVERY
from ppl_vi.stepping.optimization import Stepper
from ppl_vi.stepping.rollback import Rollback

OnNan = Literal["raise", "skip", "rollback"]


Taken = tuple[float, bool]
"""One step that was taken: its loss, and whether all its numbers were finite."""


class Runner(Protocol):
    """Takes the steps of a fit."""

    @property
    def block(self) -> int:
        """How many steps it takes at best in one go."""

    def advance(self, count: int) -> list[Taken]:
        """Take up to ``count`` steps, at least one.

        Raises:
            FloatingPointError: a number is not finite, and the fit is not to skip such steps.
        """


class EagerRunner:
    """Takes one step after the other.

    Args:
        loss_and_grads: the loss on a batch; it adds to the parameters' gradients.
        stream: gives the batches.
        stepper: moves the parameters.
        on_nan: ``"raise"`` an error on a loss or gradient that is not finite, ``"skip"`` the step, or
            ``"rollback"`` to the last good state.
        blame: says which site is to blame on a batch whose loss is not finite.
        scheduled: numbers of the loss that are others in each step.
        summed: sums losses and gradients over several processes.

    Attributes:
        done: steps taken, by whoever took them.
        rollback: the last good state, with ``on_nan="rollback"``.
    """

    block = 1

    def __init__(
        self,
        loss_and_grads: Callable[[Batch], float],
        stream: Stream,
        stepper: Stepper,
        on_nan: OnNan,
        blame: Callable[[Batch], str],
        scheduled: Scheduled | None = None,
        summed: SumOfSteps | None = None,
    ) -> None:
        self._summed = summed
        self.loss_and_grads, self.stream, self.stepper = loss_and_grads, stream, stepper
        self._on_nan, self._blame, self._scheduled = on_nan, blame, scheduled
        self._batch: Batch | None = None
        self.rollback = Rollback(stepper) if on_nan == "rollback" else None
        self.done = 0

    def advance(self, count: int) -> list[Taken]:
        """Take ``count`` steps."""
        taken = []
        for _ in range(count):
            self._batch = self._batch or next(self.stream)  # kept where its step comes to nothing
            taken.append(self._take(self._batch))
            self._batch = None
        return taken

    def state(self) -> State:
        """All that is not in the parameters, for another one to go on with."""
        return {
            "done": self.done,
            "stream": self.stream.state(),
            "stepper": self.stepper.state(),
            "rollback": self.rollback and self.rollback.state(),
        }

    def go_on(self, state: State) -> None:
        """Go on where another one was."""
        self.done = state["done"]
        self.stream.go_on(state["stream"])
        self.stepper.go_on(state["stepper"], trainable())
        if self.rollback is not None:
            self.rollback.go_on(state["rollback"])

    def fail(self, batch: Batch) -> NoReturn:
        """Take the next step, on a batch that is known to fail, for its error."""
        self._take(batch)
        raise FloatingPointError(
            f"step {self.done}: a number of the compiled step is not finite, though it is when the "
            f"same step runs eager. Pass compile=False."
        )

    def _take(self, batch: Batch) -> Taken:
        parameters = trainable()
        if self._scheduled is not None:
            self._scheduled.use(self.done)
        self.stepper.zero_grad(parameters)
        loss = _loss(self.loss_and_grads, batch)
        parameters = trainable()
        if self._summed is not None:
            loss = self._summed(loss, parameters, batch)
        self.done += 1
        finite = _finite(loss, parameters)
        rollback = self.rollback
        if finite:
            if rollback is not None and rollback.is_due(self.done - 1):
                rollback.keep(self.stepper.saved(parameters))
            self.stepper.step(parameters, loss)
        elif self._on_nan == "raise" or (rollback is not None and not self._went_back(rollback)):
            told = _complaint(self.done, loss, parameters, self._blame(batch))
            raise FloatingPointError(f"{told} {_remedy(rollback)}")
        went_back = not finite and rollback is not None
        if self.done % SETTLED_EVERY == 0 and not went_back:
            self.stepper.settle()
        return loss, finite

    def _went_back(self, rollback: Rollback) -> bool:
        return rollback.go_back(lambda good: self.stepper.bring_back(good, trainable()))


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
    # The extremes: a sum would overflow before the gradients do, and a maximum norm is slow.
    numbers = [each for each in map(_numbers, gradients) if each.numel()]
    extremes = [extreme for each in numbers for extreme in torch.aminmax(each)]
    return not extremes or bool(torch.isfinite(torch.stack(extremes)).all())


def _numbers(gradient: Tensor) -> Tensor:
    """The real numbers of a gradient, whether complex, sparse or neither."""
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(dense) if dense.is_complex() else dense


def _complaint(step: int, loss: float, parameters: Mapping[str, Tensor], site: str) -> str:
    bad = [
        f"'{name}'"
        for name, parameter in parameters.items()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    gradients = f"; gradients that are not finite: {', '.join(bad)}" if bad else ""
    return f"step {step}: {what}{site}{gradients}."


def _remedy(rollback: Rollback | None) -> str:
    if rollback is None:
        return (
            "Lower the learning rate, start nearer to the data (initial_values), or pass "
            "on_nan='rollback' to go on with smaller steps or on_nan='skip' to leave such steps out."
        )
    went = (
        f"Went back {rollback.times} times to smaller steps, which did not help"
        if rollback.times
        else "There was no good step to go back to"
    )
    return (
        f"{went}: look at that site for a logarithm or a division at 0, or an overflow, or "
        f"start nearer "
        f"to the data (initial_values)."
    )
