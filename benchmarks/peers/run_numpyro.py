"""NumPyro: ``svi.update`` in one compiled loop that keeps all losses, as ``svi.run`` does.

``svi.run`` compiles anew in every call, so that its steps could be timed only as a difference of two
noisy numbers. This loop takes the number of steps as an argument: one compilation serves the curve
and the timing. Minibatches are gathered inside it.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpyro
from jax import Array, lax
from numpyro.infer import SVI, Trace_ELBO

from peers.data import data_of
from peers.numpyro_programs import programs
from peers.pyro_names import flat
from peers.tasks import Run, Task, follow, steady

_KEPT = 10_000
"""Losses; a compiled loop has room for a fixed number."""


def run(task: Task) -> Run:
    """Fit."""
    problem = task.problem
    data = tuple(jax.numpy.asarray(array) for array in data_of(task.arrays).values())
    model, guide = programs(problem, task.arrays)
    svi = SVI(model, guide, numpyro.optim.Adam(problem.rate), Trace_ELBO())

    def batch(key: Array, data: tuple[Array, ...]) -> tuple[Array, ...]:
        if problem.batch is None:
            return data
        rows = jax.random.randint(key, (problem.batch,), 0, problem.num_data)
        return tuple(array[rows] for array in data)

    @jax.jit
    def loop(state: Any, key: Array, count: Array, data: tuple[Array, ...]) -> Any:
        def step(number: Array, carried: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
            state, key, losses = carried
            if problem.batch is None:
                state, loss = svi.update(state, *data)
            else:
                key, now = jax.random.split(key)
                state, loss = svi.update(state, *batch(now, data))
            return state, key, losses.at[number % _KEPT].set(loss)

        return lax.fori_loop(0, count, step, (state, key, jax.numpy.zeros(_KEPT)))

    first, key = jax.random.split(jax.random.key(task.seed))
    carried: tuple[Any, ...] = svi.init(first, *batch(key, data)), key

    def advance(count: int) -> None:
        nonlocal carried
        carried = loop(*carried, count, data)[:-1]  # without the losses
        jax.tree.map(lambda array: array.block_until_ready(), carried)

    def values() -> dict[str, np.ndarray]:
        found = svi.get_params(carried[0])
        return flat(problem, {name: np.array(array) for name, array in found.items()})

    snapshots = follow(task, advance, values)
    return Run(steady(task, advance), snapshots)
