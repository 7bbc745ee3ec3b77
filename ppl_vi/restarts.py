"""Several fits from several starts, of which the best is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from ppl_vi.attempts import Settings, attempt
from ppl_vi.checkpoints import State
from ppl_vi.checkpoints.keeping import Keeper
from ppl_vi.parameters import FittedParameters
from ppl_vi.result import FitResult
from ppl_vi.saving import fit_of, restarts_of, restarts_state, state_of
from ppl_vi.stopping.reasons import Restart, StopReason


class Race:
    """The restarts of a fit.

    Args:
        settings: what they have in common.
        bar: shows the steps.
        keeper: writes checkpoints.

    Attributes:
        tried: what became of those that are over.
    """

    def __init__(self, settings: Settings, bar: tqdm[Any], keeper: Keeper) -> None:
        self._settings, self._bar, self._keeper = settings, bar, keeper
        self.tried: list[Restart] = []
        self._best: FitResult | None = None
        self._kept: State = None  # the best of them before the fit was cut
        self._start: FittedParameters | None = None

    def run(self, past: State = None) -> FitResult:
        """The best of all fits, or of those that were made before someone interrupted them.

        Args:
            past: the checkpoint to go on from.
        """
        race = past and past["race"]
        if race is not None:
            self.tried, self._kept = restarts_of(race["tried"]), race["best"]
            self._bar.update(sum(one.num_steps for one in self.tried))
        for restart in range(len(self.tried), self._settings.restarts):
            if restart > 0:
                self._bar.set_description_str(f"restart {restart + 1} of {self._settings.restarts}")
            if self._start is not None:
                self._start.restore()  # modules that the programs hold begin every restart alike
            self._keeper.common["race"] = self._state()
            try:
                result = attempt(self._settings, restart, self._bar, self._keeper, past)
            except KeyboardInterrupt:  # before its first step, or after its last
                if not self.tried or self._settings.source.ranks.size > 1:
                    raise
                break
            if self._start is None:
                first = race and race["start"]
                self._start = replace(result.start, values=first) if first else result.start
            past = None
            self._take(result)
            if result.stop_reason is StopReason.INTERRUPTED:
                break
        return self._chosen()

    def _take(self, result: FitResult) -> None:
        """One more fit is over."""
        highest = max(map(_height, self.tried), default=None)
        self.tried.append(Restart.of(result))
        if highest is None or _height(self.tried[-1]) > highest:
            self._best, self._kept = result, None

    def _state(self) -> State:
        """What the checkpoints of the next restart hold of those before it."""
        if self._keeper.writes and self._best is not None:
            self._kept = state_of(self._best)
        return {
            "tried": restarts_state(self.tried),
            "best": self._kept,
            "start": self._start and self._start.values,
        }

    def _chosen(self) -> FitResult:
        if self._best is not None:
            return self._best
        s = self._settings
        name = self._keeper.name
        return fit_of(self._kept, name, s.model, s.guide, s.source, s.data_plate, s.objective)


def _height(restart: Restart) -> float:
    """By what restarts compare; a NaN would compare with nothing."""
    return -math.inf if math.isnan(restart.bound) else float(restart.bound)
