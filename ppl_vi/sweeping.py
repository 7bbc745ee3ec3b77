"""Guides that are fitted by sweeps of exact updates, not by gradient steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.compilation import Execution
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
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: Mapping[str, Tensor],
        elsewhere: bool = False,
    ) -> None:
        """Set the parameters to a start: at values of sites where these are given, else at random.

        Parameters of the model start where the program puts them, unless ``elsewhere``.

        Raises:
            ModelError: the model does not allow of exact updates; the message names the site.
        """

    def sweep(self) -> float:
        """Update every factor once; gives the exact ELBO after that."""

    def capture(self) -> None:
        """Repeat the operations of a sweep from now on, without the program around them.

        Raises:
            CompileError: they cannot be repeated.
        """

    def settle(self) -> None:
        """Set what sweeps leave out, after the last of them."""

    def remarks(self) -> tuple[str, ...]:
        """What a person should know of the fit that the ELBO does not say, a line each."""


def is_swept(guide: Any) -> TypeGuard[SweptGuide]:
    """Whether a guide is fitted by sweeps."""
    return isinstance(guide, SweptGuide)


def check_settings(objective: Any, optimizer: Any, batched: bool, compiled: bool) -> None:
    """Raise GuideError for settings of ``fit`` that mean nothing to exact updates."""
    reasons = {
        "objective": (type(objective) is not ELBO, "maximise the ELBO alone"),
        "optimizer": (optimizer is not None, "have no learning rate"),
        "batch_size": (batched, "need all rows at once"),
        "compile": (compiled, "are not compiled"),
    }
    for setting, (given, reason) in reasons.items():
        if given:
            raise GuideError(f"{setting}: exact updates {reason}. Leave {setting} out.")


def sweep_to_rest(
    guide: SweptGuide, steps: int, captured: bool, callbacks: Sequence[Callback], bar: tqdm[None]
) -> tuple[list[float], StopReason, Execution]:
    """Sweep until the ELBO rises no more, or ``steps`` sweeps are done.

    Args:
        guide: at its start.
        steps: the most sweeps.
        captured: whether sweeps after the first few may be captured.
        callbacks: told of every sweep.
        bar: shows the ELBO.

    Returns:
        Minus the exact ELBO after each sweep, why it stopped, and how sweeps were made.
    """
    losses: list[float] = []
    tolerance = _TOLERANCE.get(torch.get_default_dtype(), 1e-6)
    reason = StopReason.STEPS
    execution = Execution("eager", "few sweeps" if captured else "compile=False")
    while len(losses) < steps and reason is StopReason.STEPS:
        if len(losses) == _PLAIN_SWEEPS and captured:
            execution = _captured(guide, bar)
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
    return losses, reason, execution


def _captured(guide: SweptGuide, bar: tqdm[None]) -> Execution:
    """Capture the guide's sweeps, if they can be."""
    try:
        guide.capture()
    except CompileError as reason:
        if not bar.disable:
            bar.write(f"sweeping eager, since {reason}")
        return Execution("eager", str(reason))
    return Execution("captured", "sweeps are not compiled", captures=1)
