"""ppl-vi: ``fit`` with its guide and optimizer given, so that it starts and moves as the others do.

Blocks of compiled steps run only where no callback listens to each of them. So the first fit, on the
clock, has none; a second one, off the clock and with the same draws, keeps the parameters on the way.
A snapshot's time is the end of the first fit less the steps that were still to come: when a fit of
that many steps would have returned, its work before and after the steps included.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.data import data_of
from peers.pyro_names import flat
from peers.pyro_programs import programs, values_now
from peers.tasks import Run, Snapshot, Task, since_start
from ppl_vi import ELBO, FitResult, fit


class _Fits:
    """Fits of one task, each from its start."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @cached_property
    def _data(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in data_of(self._task.arrays).values())

    def run(self, steps: int, callbacks: tuple[Any, ...] = ()) -> FitResult:
        """One fit."""
        task, problem = self._task, self._task.problem
        options: dict[str, Any] = {"batch_size": problem.batch, "callbacks": callbacks}
        if "compile" in inspect.signature(fit).parameters:
            options["compile"] = task.compile
        model, guide = programs(problem, task.arrays, 1.0)
        return fit(
            model,
            guide,
            self._data,
            objective=ELBO(num_particles=1, analytic=False),
            optimizer=lambda tensors: torch.optim.Adam(tensors, lr=problem.rate),
            steps=steps,
            tol=None,
            seed=task.seed,
            progress=False,
            **options,
        )


def run(task: Task) -> Run:
    """Fit."""
    torch.set_num_threads(task.threads)
    fits = _Fits(task)
    result = fits.run(task.steps)
    ended = since_start()
    last = flat(task.problem, {name: value.numpy() for name, value in result.params.items()})
    kept: dict[int, dict[str, np.ndarray]] = {}
    wanted = set(task.snapshots)

    def keep(progress: Any) -> None:
        if progress.step in wanted:
            kept[progress.step] = values_now(task.problem)

    fits.run(task.steps, (keep,))
    per_step = _seconds_per_step(task, fits)
    differ = max(float(np.abs(kept[task.steps][name] - last[name]).max()) for name in last)
    kept[task.steps] = last
    snapshots = [
        Snapshot(step, ended - (task.steps - step) * per_step, kept[step]) for step in sorted(kept)
    ]
    execution = str(getattr(result, "execution", "eager"))
    return Run(per_step, snapshots, {"execution": execution, "replay_differs": differ})


def _seconds_per_step(task: Task, fits: _Fits) -> float:
    """Of warm fits that are long for the clock, their steps alone: what they say of themselves."""
    steps = task.steps
    while fits.run(steps).execution.step_seconds < task.stretch:
        steps *= 3
    taken = [fits.run(steps) for _ in range(task.repeats)]
    return median(result.execution.step_seconds / result.num_steps for result in taken)
