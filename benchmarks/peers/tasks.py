"""What one process is asked to do, and what it answers."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peers.settings import Problem

STARTED = "PEERS_STARTED"
"""Environment variable: the parent's clock at the start of this process."""

_FIRST, _GROWTH = 10, 1.25


@dataclass(frozen=True)
class Task:
    """A fit.

    Attributes:
        problem: what is fitted.
        arrays: data and starts.
        steps: gradient steps.
        threads: for torch.
        seed: of the draws.
        compile: what ``ppl_vi.fit(compile=...)`` is given.
        quick: whether timings may be rough.
    """

    problem: Problem
    arrays: dict[str, np.ndarray]
    steps: int
    threads: int
    seed: int
    compile: bool | str
    quick: bool

    @property
    def stretch(self) -> float:
        """Seconds that a timing lasts at least."""
        return 0.1 if self.quick else 0.5

    @property
    def repeats(self) -> int:
        """Timings, of which the median counts."""
        return 1 if self.quick else 3

    @property
    def snapshots(self) -> list[int]:
        """The steps after which parameters are kept: a geometric series, and the last."""
        steps, step = [], float(_FIRST)
        while step < self.steps:
            steps.append(round(step))
            step *= _GROWTH
        return [*steps, self.steps]


@dataclass(frozen=True)
class Snapshot:
    """The parameters after some steps, and the seconds since the process started."""

    step: int
    seconds: float
    values: dict[str, np.ndarray]


@dataclass
class Run:
    """The answer.

    Attributes:
        seconds_per_step: when all is warm.
        snapshots: in order; none for peers that do coordinate ascent.
        notes: anything else, by name.
    """

    seconds_per_step: float
    snapshots: list[Snapshot] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def since_start() -> float:
    """Seconds since the parent started this process: imports and compilers count."""
    return time.time() - float(os.environ[STARTED])


def follow(
    task: Task, advance: Callable[[int], None], values: Callable[[], dict[str, np.ndarray]]
) -> list[Snapshot]:
    """Run a fit and keep its parameters on the way.

    Args:
        task: tells the steps.
        advance: takes that many steps, and comes back when they are done.
        values: a copy of the parameters.
    """
    kept, done = [], 0
    for step in task.snapshots:
        advance(step - done)
        done = step
        kept.append(Snapshot(step, since_start(), values()))
    return kept


def steady(task: Task, advance: Callable[[int], None]) -> float:
    """Seconds per step of a warm loop: the median of stretches that are long for the clock."""
    count = 50
    while _timed(advance, count) < task.stretch:
        count *= 3
    return statistics.median(_timed(advance, count) for _ in range(task.repeats)) / count


def _timed(advance: Callable[[int], None], count: int) -> float:
    started = time.perf_counter()
    advance(count)
    return time.perf_counter() - started
