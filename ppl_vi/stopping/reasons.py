"""Why a fit stopped, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from ppl_vi.estimate import Estimate
from ppl_vi.stopping.convergence import SURE


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
        step: where the window began whose bound was averaged, counted from 0; ``None`` where there
            was none.
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

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do about it, in words; nothing where all is well."""
        if self.verdict is StopReason.CLIMBING and self.step is None:
            return (f"the last sweep still gained {self.gain:.2g} nats. Pass more steps.",)
        if self.verdict is StopReason.CLIMBING:
            return (
                f"the bound still climbed, by {self.gain:.2g} ± {self.standard_error:.1g} nats in the "
                f"steps that were judged last (from step {self.step} on). Pass more steps, or start "
                f"nearer to the posterior (initial_values).",
            )
        if self.verdict is StopReason.NOISE:
            hidden = SURE * self.standard_error
            return (
                f"the bound is flat, but so noisy that gains under {hidden:.2g} nats would not show. "
                f"To see them, pass objective=ELBO(num_particles=...) with more particles or a "
                f"larger batch_size; to take all steps, tol=None.",
            )
        return ()


@dataclass(frozen=True)
class Restart:
    """What became of one start.

    Attributes:
        bound: the objective's value on all rows, on the same draws for every start.
        num_steps: steps taken.
        stop_reason: why no more.
    """

    bound: Estimate
    num_steps: int
    stop_reason: StopReason

    @classmethod
    def of(cls, result: Any) -> Restart:
        """Of a ``FitResult``."""
        return cls(result.bound, result.num_steps, result.stop_reason)

    def __str__(self) -> str:
        return f"bound {self.bound} after {self.num_steps} steps: {self.stop_reason}"
