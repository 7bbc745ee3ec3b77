"""Back to the last good state of a fit, and on from there with smaller steps."""

from __future__ import annotations

from collections.abc import Callable

from ppl_vi.stepping.optimization import Stepper

EVERY = 100
"""Steps from one state that is kept to the next; a copy of all parameters at each would cost time."""
MOST_TIMES = 10
FACTOR = 0.5

Restore = Callable[[], None]


class Rollback:
    """The last state of parameters and optimizer at which loss and gradients were finite.

    Each time that a fit goes back to it, the learning rates are halved, at most 10 times in all.

    Args:
        stepper: whose learning rates are made smaller.

    Attributes:
        times: how often the fit went back.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._restore: Restore | None = None
        self.times = 0

    def is_due(self, step: int) -> bool:
        """Whether the state before this step is to be kept, once the step is known to be good."""
        return self._restore is None or step % EVERY == 0

    def keep(self, restore: Restore) -> None:
        """There was a good state, to which this goes back."""
        self._restore = restore

    def forget(self) -> None:
        """The way back is no longer open: another runner keeps the state of the optimizer."""
        self._restore = None

    @property
    def is_possible(self) -> bool:
        """Whether there is a state to go back to, and that was not done too often."""
        return self._restore is not None and self.times < MOST_TIMES

    def go_back(self) -> bool:
        """Restore the state and make steps smaller, where that is possible; whether it was."""
        if self._restore is None or not self.is_possible:
            return False
        self.times += 1
        self._restore()
        self._stepper.slow_down(FACTOR)
        return True
