"""What a checkpoint of a fit holds, and how a fit goes on from it."""

from __future__ import annotations

import hashlib
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyro.infer
import torch

from ppl_vi.checkpoints import State
from ppl_vi.checkpoints.identity import (
    Identity,
    data_identity,
    programs_identity,
    refuse_others,
)
from ppl_vi.checkpoints.keeping import Keeper, understood
from ppl_vi.checkpoints.programs import programs_state, restore_programs, typical_values
from ppl_vi.compilation.watching import Undo
from ppl_vi.job import Job
from ppl_vi.objectives import Objective
from ppl_vi.parameters import FittedParameters
from ppl_vi.randomness import random_state, use_random_state
from ppl_vi.running import states_after
from ppl_vi.states import States
from ppl_vi.stepping.moments import in_words
from ppl_vi.sweeping.guides import is_swept
from ppl_vi.training import Keep

if TYPE_CHECKING:
    from ppl_vi.attempts import Settings


def fit_identity(settings: Settings) -> Identity:
    """What all restarts of a fit have in common, in words: data, and what is asked of the steps."""
    s = settings
    batch = next(s.source.chunks(), None)
    return {
        **data_identity(s.source),
        "objective": _objective_in_words(s.objective),
        "batch_size": "none" if batch is None else f"{len(batch):,}",
        "tol": repr(s.tol),
        "on_nan": s.on_nan,
        "compile": repr(s.compile),
        "restarts": repr(s.restarts),
        "seed": repr(s.seed),
    }


def fit_state(settings: Settings) -> dict[str, State]:
    """What all checkpoints of a fit have in common."""
    return {"fit": fit_identity(settings)}


def refuse_other_fits(keeper: Keeper, past: State) -> None:
    """Raise where a checkpoint is of other data, or of a fit with other settings.

    Raises:
        CheckpointError: it is; the message names what differs.
    """
    refuse_others(keeper.name, past["fit"], keeper.common["fit"])


class Run:
    """One restart of a fit, as its checkpoints know it.

    Args:
        keeper: writes them.
        past: the checkpoint to go on from; ``None`` at the beginning.

    Attributes:
        past: as given.
        name: of the file, for errors.
    """

    def __init__(self, keeper: Keeper, past: State = None) -> None:
        self.past, self.name, self._keeper = past, keeper.name, keeper
        self._began = time.perf_counter() - (0.0 if past is None else past["seconds"])
        self._start: FittedParameters | None = None

    @property
    def seconds(self) -> float:
        """Since it started, those before it was cut included."""
        return time.perf_counter() - self._began

    def meet(self, job: Job) -> None:
        """Look at the programs, once their parameters are there.

        Raises:
            CheckpointError: those in the file are others; the message names what differs.
        """
        if not self._keeper.writes:
            return
        # Of several processes, sweeps have divided the factors of rows; all else is looked at whole.
        self._job, alone = job, job if is_swept(job.guide) else job.alone
        with Undo():  # a look leaves no trace, in averages of a batch norm for example
            self._identity = programs_identity(alone)
            if self.past is not None:
                refuse_others(self.name, self.past["identity"], self._identity)
            old = None if self.past is None else self.past["programs"]["values"]
            self._values = typical_values(alone) if old is None else old

    def starts(self, start: FittedParameters, several: bool) -> FittedParameters:
        """Where the programs of this restart start, or have started if it goes on.

        Args:
            start: where they are.
            several: whether there are more restarts, which begin there too.
        """
        if self.past is not None and self.past["start"] is not None:
            start = replace(start, values=self.past["start"])
        self._start = start if several else None
        return start

    def restore(self, objective: pyro.infer.ELBO | None = None) -> None:
        """Lay what was learned into the programs, and into the estimators of an objective."""
        states = {} if objective is None else states_after(objective, self._job)
        with understood(self.name):
            restore_programs(self._job, self.past["programs"], self.name)
            for site, kept in self.past["estimators"].items():
                for module, state in zip(states[site], kept, strict=True):
                    if module is not None:
                        module.load_state_dict(state)

    def go_on(self) -> None:
        """Draw from here on what the fit that was cut would have drawn; the last thing to restore."""
        here, there = _machine(), self.past["machine"]
        others = [key for key in here if here[key] != there[key]]
        if others:
            warnings.warn(
                f"checkpoint={self.name} was written with another {' and '.join(others)}. The fit goes "
                f"on, but rounding may differ from that of the fit that was cut.",
                stacklevel=2,
            )
        with understood(self.name):
            use_random_state(self.past["random"])

    def keep(
        self,
        state: Callable[[], State],
        planned: Identity,
        objective: pyro.infer.ELBO | None = None,
        done: int = 0,
    ) -> Keep:
        """Gives who writes checkpoints, from here on; the first one is written now.

        Args:
            state: gives all that the steps go on from, besides programs and estimators.
            planned: what else the steps to come depend on, in words.
            objective: whose estimators learn.
            done: how many steps were taken.

        Raises:
            CheckpointError: the file cannot be written.
        """
        states = states_after(objective, self._job) if self._keeper.writes and objective else {}

        def whole() -> State:
            return {
                "identity": self._identity,
                "planned": planned,
                "machine": _machine(),
                "seconds": self.seconds,
                "start": self._start and self._start.values,
                "programs": programs_state(self._job, self._values),
                "estimators": _states(states),
                "random": random_state(),
                **state(),
            }

        self._keeper.begin(whole)
        self._keeper.restarted(done)
        return lambda step, last: self._keeper.offer(step, last, whole)


def _states(states: States) -> State:
    return {
        site: [None if module is None else module.state_dict() for module in own]
        for site, own in states.items()
    }


def _objective_in_words(objective: pyro.infer.ELBO) -> str:
    if isinstance(objective, Objective):
        return in_words(objective)
    plain = {n: v for n, v in vars(objective).items() if isinstance(v, (bool, int, float, str))}
    return in_words(type(objective), plain)


def _machine() -> dict[str, str]:
    """What rounding depends on."""
    return {
        "number of threads": str(torch.get_num_threads()),
        "release of torch": str(torch.__version__),
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return hashlib.sha256("".join(kinds).encode()).hexdigest()[:12]


__all__ = ["Run", "fit_identity", "fit_state", "refuse_other_fits"]
