"""Where a bound and the estimators of its sites meet.

surrogate = bound(log_w) + Σ_sites term(latent, credit), with

    credit = drop(downstream, baseline(downstream)),

the drop of the bound when a draw's downstream log-weight falls to what the baseline foretells. For a
linear bound this equals drop(log_w, log_w - downstream + baseline), without the cancellation of two
large numbers. The gradient of the surrogate estimates that of the expected bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ppl_vi.estimators import Estimator
from ppl_vi.program import Dependencies, Run


class Bound(Protocol):
    """The part of an objective that the surrogate needs: log-weights in, no sites."""

    def bound(self, log_w: Tensor) -> Tensor: ...

    def drop(self, log_w: Tensor, new: Tensor) -> Tensor: ...


def surrogate(
    objective: Bound,
    run: Run,
    estimators: Mapping[str, Estimator],
    dependencies: Dependencies | None,
) -> tuple[Tensor, Tensor]:
    """The bound of a run and the surrogate whose gradient is the bound's.

    Args:
        objective: gives ``bound`` and ``drop``.
        run: the factors and latents of a batch of particles.
        estimators: by site.
        dependencies: what each draw reaches; needed where an estimator uses credit.

    Returns:
        Two scalars, to be maximised: the bound's value and the surrogate.
    """
    bound = objective.bound(run.log_weights())
    total = bound
    for name, estimator in estimators.items():
        if estimator.uses_credit and dependencies is not None:
            credit = _credit(objective, run, name, estimator, dependencies)
            total = total + estimator.term(run.latents[name], credit)
    return bound.detach(), total


def _credit(
    objective: Bound, run: Run, name: str, estimator: Estimator, dependencies: Dependencies
) -> Tensor:
    """``[num_particles, *plates]``: how much of the bound each draw of the site answers for."""
    plates = run.latents[name].plates
    kept = dependencies.credit_plates(name, run)
    with torch.no_grad():
        downstream = run.summed(dependencies.factors_of(name, run), kept)
        # A plate that the program mixes is summed; every element answers for the whole.
        position = {plate: 1 + i for i, plate in enumerate(kept)}
        sizes = [downstream.shape[position[p]] if p in position else 1 for p in plates]
        downstream = downstream.reshape(run.num_particles, *sizes)
        baseline = estimator.subtracted
        foretold = torch.zeros_like(downstream) if baseline is None else baseline(downstream)
        return objective.drop(downstream, foretold)
