"""Who watches the losses of a fit: lets the learning rate fall, and says when to stop.

At a constant rate iterates come to rest around an optimum, at a distance that falls with the rate. So
the rate stays until the bound rises no more, then falls to a tenth, and the next stage starts from the
mean of the iterates that were at rest. When a tenth of the rate brought no more than noise, the next
tenth would bring a tenth of that: it is taken once more, and the mean of its iterates is the answer.

Source: Dhaka et al. (2020) and Welandawe et al. (2022), where the iterates themselves are watched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_vi.checkpoints import State
from ppl_vi.stepping.rates import FINAL_RATE, INITIAL_RATE, StagedRate
from ppl_vi.stopping.averaging import TailAverage
from ppl_vi.stopping.convergence import SURE, WINDOW, ConvergenceRule, Look, Tolerance
from ppl_vi.stopping.reasons import Convergence, StopReason

EVERY = 100
"""Steps from one look at the losses to the next, counted from the first step of the fit."""
STAGE_WINDOW = 600
"""The rule's window in a stage of the default optimizer."""
_TENTH = 0.1
_PACE = 0.6
"""How much of the planned steps a fall through all rates takes, where the steps run out."""
_FEWEST = 6 * STAGE_WINDOW
"""With fewer steps there is no time for stages."""
_AVERAGED = 3_000
"""Steps whose iterates make the answer: what is left of their noise falls with the root of that."""
_HIDDEN = 1.0
"""A gain in nats that matters to a posterior; noise that may hide it is told."""


def has_time_for_stages(steps: int) -> bool:
    """Whether so many steps are enough to let the rate fall by the rule."""
    return steps >= _FEWEST


class Watch:
    """Watches the steps of one fit.

    Args:
        tol: ``fit(tol=...)``; ``None`` watches nothing.
        steps: the most that are taken.
        rate: the learning rate of the default optimizer; ``None`` where it is not ours to change.
        parameters: those that move.
        settled: the step from which on the objective is the same.

    Attributes:
        step: how many losses it has seen.
    """

    def __init__(
        self,
        tol: Tolerance | None,
        steps: int,
        rate: StagedRate | None,
        parameters: Callable[[], Sequence[Tensor]],
        settled: int = 0,
    ) -> None:
        self._tol, self._steps, self._rate, self._parameters = tol, steps, rate, parameters
        self._begun = math.ceil(settled / EVERY) * EVERY
        self.step = 0
        self._stage: list[Look] = []
        self._reason: StopReason | None = None
        self._last_stage = math.inf  # when it ends
        self._begin(self._begun)

    def _begin(self, step: int) -> None:
        self._begun = step
        window = WINDOW if self._rate is None else STAGE_WINDOW
        self._rule = None if self._tol is None else ConvergenceRule(window, self._tol)
        self._average = TailAverage()

    def sees(self, losses: Sequence[float]) -> bool:
        """Whether to stop, after the next ``EVERY`` losses."""
        self.step += len(losses)
        if self._rule is None or self.step <= self._begun:
            return False
        if self._rate is None:
            return self._rule.update(losses) and self._end()
        if self._rate.falling:
            return False
        self._average.add(self.step, self._parameters())
        if self.step >= self._last_stage:
            self._take_mean(self._begun)
            return self._end()
        if self._last_stage < math.inf:
            return False
        if self._rule.update(losses):
            return self._rested(self._rate)
        left = self._steps - self.step
        if left <= _PACE * self._steps * _depth(self._rate.rate):
            self._rate.fall(FINAL_RATE, left)
        return False

    def _rested(self, rate: StagedRate) -> bool:
        """The bound rises no more at this rate: go on from the mean iterate at a lower one, or end."""
        look = self._seen()
        # Losses may hide that the iterates still moved at first: only the later half counts.
        self._take_mean((self._begun + look.start + self.step) // 2)
        self._stage.append(look)
        lowest = rate.rate * _TENTH < FINAL_RATE
        if lowest or (len(self._stage) > 1 and self._gains_nothing(*self._stage[-2:])):
            self._last_stage = min(self.step + _AVERAGED, self._steps // EVERY * EVERY)
        if not lowest:
            rate.become(rate.rate * _TENTH)
        self._begin(self.step)
        return self._last_stage <= self.step and self._end()

    def _take_mean(self, since: int) -> None:
        with torch.no_grad():
            for parameter, mean in zip(self._parameters(), self._average.mean(since), strict=True):
                parameter.copy_(mean)

    def _gains_nothing(self, before: Look, after: Look) -> bool:
        """Whether a tenth of the rate brought no more than noise, or than what was asked for."""
        gain = float(before.level - after.level)
        doubt = math.hypot(float(before.level_error), float(after.level_error))
        if self._tol == "auto" or self._tol is None:
            return gain <= 2 * doubt
        return max(gain, 0.0) + SURE * doubt <= self._tol

    def _seen(self) -> Look:
        rule = self._rule
        if rule is None or rule.last is None:
            raise RuntimeError("the rule has not looked yet.")
        return rule.last

    def _end(self) -> bool:
        look = self._stage[-1] if self._stage else self._seen()
        hides = self._tol == "auto" and SURE * float(look.standard_error) > _HIDDEN
        self._reason = StopReason.NOISE if hides else StopReason.CONVERGED
        return True

    def state(self) -> State:
        """All that it has seen, for another one to go on with."""
        return {
            "step": self.step,
            "begun": self._begun,
            "stage": [look.state() for look in self._stage],
            "reason": self._reason and self._reason.name,
            "last_stage": self._last_stage,
            "rule": self._rule and self._rule.state(),
            "average": self._average.state(),
        }

    def go_on(self, state: State) -> None:
        """Go on where another one was, with the same tolerance and the same kind of rate."""
        self.step, self._begun = state["step"], state["begun"]
        self._stage = list(map(Look.of, state["stage"]))
        self._reason = state["reason"] and StopReason[state["reason"]]
        self._last_stage = state["last_stage"]
        if self._rule is not None:
            self._rule.go_on(state["rule"])
        self._average.go_on(state["average"], self._parameters())

    def told(self, reason: StopReason) -> Convergence:
        """What there is to say at the end of the fit.

        Args:
            reason: why no more steps were taken, if not because of what was seen here.
        """
        look = None if self._rule is None else self._rule.last
        start = self._begun + (look.start if look else 0)
        if look is None and self._stage:
            look = self._stage[-1]
        if look is None:
            return Convergence(self._reason or reason)
        if self._reason is None and reason is StopReason.STEPS:
            if not self._stage and look.climbing:
                reason = StopReason.CLIMBING
            elif self._tol != "auto":  # the noise never let so small a gain be told from none
                reason = StopReason.NOISE
        verdict = self._reason or reason
        return Convergence(verdict, start, float(look.gain), float(look.standard_error))


def _depth(rate: float) -> float:
    """How far above the last rate, as a part of the way down from the first, by factors."""
    return math.log(rate / FINAL_RATE) / math.log(INITIAL_RATE / FINAL_RATE)
