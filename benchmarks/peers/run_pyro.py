"""Pyro: ``SVI.step`` with ``Trace_ELBO``, arguments not validated."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from peers.data import data_of
from peers.pyro_programs import programs, values_now
from peers.tasks import Run, Task, follow, steady


def run(task: Task) -> Run:
    """Fit."""
    torch.set_num_threads(task.threads)
    pyro.enable_validation(False)
    pyro.set_rng_seed(task.seed)
    problem = task.problem
    data = [torch.from_numpy(array) for array in data_of(task.arrays).values()]
    model, guide = programs(problem, task.arrays, problem.scale)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": problem.rate}), Trace_ELBO())

    def batch() -> list[Tensor]:
        if problem.batch is None:
            return data
        rows = torch.randint(problem.num_data, (problem.batch,))
        return [tensor[rows] for tensor in data]

    def advance(count: int) -> None:
        for _ in range(count):
            svi.step(*batch())

    snapshots = follow(task, advance, lambda: values_now(problem))
    return Run(steady(task, advance), snapshots)
