"""Back to the last good state of a fit, and on from there with smaller steps."""

from __future__ import annotations

from collections.abc import Callable

from ppl_vi.checkpoints import State
from ppl_vi.stepping.optimization import Stepper

EVERY = 100
"""Steps from one state that is kept to the next; a copy of all parameters at each would cost time."""
MOST_TIMES = 10
FACTOR = 0.5


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
        self._good: State = None
        self.times = 0

    def is_due(self, step: int) -> bool:
        """Whether the state before this step is to be kept, once the step is known to be good."""
        return self._good is None or step % EVERY == 0

    def keep(self, good: State) -> None:
        """This was a good state of parameters and moments."""
        self._good = good

    @property
    def is_possible(self) -> bool:
        """Whether there is a state to go back to, and that was not done too often."""
        return self._good is not None and self.times < MOST_TIMES

    def go_back(self, bring_back: Callable[[State], None]) -> bool:
        """Bring the state back and make steps smaller, where that is possible; whether it was."""
        if not self.is_possible:
            return False
        self.times += 1
        bring_back(self._good)
        self._stepper.slow_down(FACTOR)
        return True

    def state(self) -> State:
        """What it holds, for another one to go on with."""
        return {"good": self._good, "times": self.times}

    def go_on(self, state: State) -> None:
        """Go on where another one was."""
        self._good, self.times = state["good"], state["times"]
