"""torch by hand: one flat tensor of locations and one of log-scales, and the fused Adam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from peers.data import data_of, start_of
from peers.tasks import Run, Task, follow, steady
from peers.torch_models import elbo

Wrapper = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def run(task: Task) -> Run:
    """Fit, one operation after the other."""
    return run_wrapped(task, lambda loss: loss)


def run_wrapped(task: Task, wrap: Wrapper) -> Run:
    """Fit with the loss wrapped, by a compiler for instance."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    problem = task.problem
    data = {name: torch.from_numpy(a) for name, a in data_of(task.arrays).items()}
    start = start_of(task.arrays)
    parameters = {n: torch.tensor(a, requires_grad=True) for n, a in start.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=problem.rate, fused=True)

    def minus_elbo() -> Tensor:
        batch = data
        if problem.batch is not None:
            rows = torch.randint(problem.num_data, (problem.batch,))
            batch = {name: tensor[rows] for name, tensor in data.items()}
        return -elbo(problem, parameters, batch)

    loss = wrap(minus_elbo)

    def advance(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    def values() -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in parameters.items()}

    snapshots = follow(task, advance, values)
    return Run(steady(task, advance), snapshots)
