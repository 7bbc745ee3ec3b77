"""How may a batch of particles run? Tried out once, because a wrong batch is often not an error.

A program that indexes from the left (``mean[z]``), or multiplies a matrix by a latent vector, runs on
a batch of particles in an outermost plate with another meaning, sometimes without an error. So the
batch is compared with its particles run alone; where they differ, ``torch.vmap`` shows the model one
particle at a time and computes them all. A program that turns a batch into one Python number or branch
is not run as a batch at all, since a few trials may all take the same branch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from ppl_vi.program.dependencies import Tracker
from ppl_vi.program.joint_states import limited_joint_states
from ppl_vi.program.run import Factor, run_guide, run_model
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair, draw_plainly, subsampled_rows, trace_model

_TRIED = 3
"""Particles, and then one fewer. A tensor of the program that has as many rows hides a mistake where
particles are nearly alike, but it has only one of the two numbers of rows."""
_REFUSED = (
    *(ValueError, RuntimeError, TypeError, IndexError, KeyError, NotImplementedError),
    AssertionError,  # Pyro's, of an enumerated value whose dimensions another one has taken
)


def choose_particles(structure: Structure, pair: Pair) -> Structure:
    """The structure with the fastest way of running particles that is right for this pair."""
    # A way that turns out wrong may warn on its way; that is not for the user.
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if all(_guide_fits_plate(structure, pair, tried) for tried in (_TRIED, _TRIED - 1)):
            structure = replace(structure, guide_particles="plate")
        values = run_guide(structure, pair, draw_plainly, _TRIED).values
        values = {**_rows_of_model(structure, pair, values), **values}
        limited = limited_joint_states(structure.marginalized)
        with limited if structure.marginalized else nullcontext():
            alone = run_model(structure, pair, values, _TRIED)
        trials = [(values, alone), _without_the_last(structure, values, alone)]
        for particles in ("plate", "vmap"):
            candidate = replace(structure, model_particles=particles)
            try:
                if all(_model_fits(candidate, pair, *tried) for tried in trials):
                    return candidate
            except _REFUSED:
                continue
    return structure


def _rows_of_model(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One subsample for all trials, of the plates that the model alone subsamples."""
    single = {n: v[0] if n in structure.sites else v for n, v in values.items()}
    return subsampled_rows(trace_model(pair, single))


def _without_the_last(
    structure: Structure, values: Mapping[str, Tensor], alone: Sequence[Factor]
) -> tuple[Mapping[str, Tensor], Sequence[Factor]]:
    fewer = {n: v[:-1] if n in structure.sites else v for n, v in values.items()}
    return fewer, [replace(factor, log_prob=factor.log_prob[:-1]) for factor in alone]


def _model_fits(
    candidate: Structure, pair: Pair, values: Mapping[str, Tensor], alone: Sequence[Factor]
) -> bool:
    count = len(alone[0].log_prob) if alone else _TRIED
    if candidate.model_particles == "vmap":  # it forbids Python numbers by itself
        return _same(run_model(candidate, pair, values, count), alone)
    with Tracker() as tracker:
        for name in candidate.drawn:
            tracker.mark(values[name], name)
        together = run_model(candidate, pair, values, count)
    return not tracker.escaped and _same(together, alone)


def _guide_fits_plate(structure: Structure, pair: Pair, count: int) -> bool:
    try:
        tracker = Tracker()

        def draw_marked(name: str, distribution: Any) -> Tensor:
            value = draw_plainly(name, distribution).clone()
            tracker.mark(value, name)
            return value

        with tracker:
            plate = replace(structure, guide_particles="plate")
            together = run_guide(plate, pair, draw_marked, count)
        if tracker.escaped:
            return False
        rows = structure.row_numbers(together.values)
        for k in range(count):

            def draw(name: str, distribution: Any, k: int = k) -> Tensor:
                # A Delta's value is the guide's own function of the other draws.
                fixed: bool = isinstance(distribution, Delta)
                return distribution() if fixed else together.values[name][k]

            alone = run_guide(structure, pair, draw, 1, rows)
            mine = [replace(f, log_prob=f.log_prob[k : k + 1]) for f in together.factors]
            if not _same(mine, alone.factors):
                return False
    except _REFUSED:
        return False
    return True


def _same(factors: Sequence[Factor], expected: Sequence[Factor]) -> bool:
    return len(factors) == len(expected) and all(
        one.sites == other.sites
        and one.plates == other.plates
        and one.log_prob.shape == other.log_prob.shape
        and torch.allclose(one.log_prob, other.log_prob, rtol=1e-3, atol=1e-4, equal_nan=True)
        for one, other in zip(factors, expected, strict=True)
    )
