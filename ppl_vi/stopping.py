"""Why a fit stopped, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class StopReason(Enum):
    """Why a fit stopped; ``str(reason)`` is the sentence shown to a person."""

    STEPS = "all the steps asked for were taken"
    CONVERGED = "the bound rises no more"
    CLIMBING = "all the steps asked for were taken while the bound still climbed"
    NOISE = "the bound is flat as far as its noise lets one see"
    CLOSED_FORM = "the posterior was found in closed form from a fitted one"
    CALLBACK = "a callback asked to stop"
    INTERRUPTED = "it was interrupted, and what it had come to was kept"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Convergence:
    """Where a fit stopped, and what it may have left undone.

    Attributes:
        verdict: why it stopped.
        step: where the window began whose bound and iterates were averaged, counted from 0; ``None``
            where there was none.
        gain: how much the mean bound rose from the first to the second half of that window, in nats:
            what steps at the last learning rate might still bring. NaN where it was not estimated.
        standard_error: of the gain, from the spread of block means; NaN likewise.
    """

    verdict: StopReason
    step: int | None = None
    gain: float = float("nan")
    standard_error: float = float("nan")

    def __str__(self) -> str:
        if self.step is None:
            return str(self.verdict)
        return (
            f"{self.verdict} (since step {self.step}; the gain in the later half of these steps is "
            f"{self.gain:.2g} ± {self.standard_error:.1g} nats)"
        )
