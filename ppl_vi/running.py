"""An objective on a job: the model as it runs it, its loss on a batch, its value on all rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer
import torch

from ppl_vi.data.sources import Batch
from ppl_vi.errors import GuideError
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.objectives import EvidenceLowerBound, Objective
from ppl_vi.program import KeepFrozen, Structure, enumerated
from ppl_vi.randomness import forked_rng
from ppl_vi.states import States

Program = Callable[..., Any]

_BOUND_EVALUATIONS = 100


def model_for(objective: pyro.infer.ELBO, job: Job, structure: Structure) -> Program:
    """The model as the objective runs it: Pyro's are told which sites to sum out.

    Raises:
        GuideError: the objective cannot estimate a site, or not sum it out.
    """
    if isinstance(objective, Objective):
        estimators_of(objective, job)  # may refuse a site
        return job.model
    _check_nesting(objective, structure)
    if not structure.marginalized:
        return job.model
    if not isinstance(objective, pyro.infer.TraceEnum_ELBO):
        raise GuideError(
            f"site '{structure.marginalized[0]}' is discrete and the guide leaves it out, but "
            f"{type(objective).__name__} cannot sum it out. Use ppl_vi.ELBO or TraceEnum_ELBO."
        )
    return enumerated(job.model, structure.marginalized)


def _check_nesting(objective: pyro.infer.ELBO, structure: Structure) -> None:
    """Raise GuideError where an objective of Pyro's leaves the plates too few dimensions."""
    told, needed = objective.max_plate_nesting, structure.nesting
    uses = isinstance(objective, pyro.infer.TraceEnum_ELBO) or objective.vectorize_particles
    if uses and told < needed:
        deepest = min(structure.plates.values(), key=lambda plate: plate.dim)
        raise GuideError(
            f"objective: {type(objective).__name__}(max_plate_nesting={told}) leaves too few "
            f"dimensions: "
            f"plate '{deepest.name}' stands at dimension {deepest.dim}. Pass "
            f"max_plate_nesting={needed}, "
            f"or leave it out."
        )


def estimators_of(objective: pyro.infer.ELBO, job: Job) -> dict[str, str]:
    """The estimator of each site, in words."""
    if not isinstance(objective, Objective):
        return {}
    batch = next(job.source.sequence())
    with job.handler(batch):
        pair = job.pair(batch)
        plan = objective.plan(pair)
        with torch.no_grad(), forked_rng(), unchecked():
            objective.estimate(pair)  # what a network or a proposal can't do is said before a step
        return objective.described(plan)


def states_after(objective: pyro.infer.ELBO, job: Job) -> States:
    """What the estimators of the sites have learned in the fit."""
    if not isinstance(objective, Objective):
        return {}
    batch = next(job.source.sequence())
    with job.handler(batch):
        return objective.states(job.pair(batch))


def in_words(estimators: Mapping[str, str]) -> str:
    """Which estimator serves which sites, in one line; empty where none is known."""
    sites: dict[str, list[str]] = {}
    for site, estimator in estimators.items():
        sites.setdefault(estimator, []).append(site)
    return "; ".join(f"{', '.join(names)}: {estimator}" for estimator, names in sites.items())


def loss_and_grads_of(
    objective: pyro.infer.ELBO, model: Program, job: Job
) -> Callable[[Batch], float]:
    """The loss of a batch, counted for all rows; it adds to the gradients of the parameters."""

    def loss_and_grads(batch: Batch) -> float:
        with job.handler(batch), unchecked():
            return float(objective.loss_and_grads(model, job.guide, *batch.args, **batch.kwargs))

    return loss_and_grads


@contextmanager
def unchecked() -> Iterator[None]:
    """All was checked before the first step, and numbers that are not finite are told by ``train``."""
    with pyro.validation_enabled(False), KeepFrozen(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered (NaN|[+-]?inf)")
        yield


def final_bound(objective: pyro.infer.ELBO, model: Program, job: Job, elbo: Estimate) -> Estimate:
    """The objective's value on all rows; that of an ELBO is the ELBO."""
    if isinstance(objective, EvidenceLowerBound):
        return elbo
    with torch.no_grad(), forked_rng(seed=0), unchecked():
        own = [_objective_value(objective, model, job) for _ in range(_BOUND_EVALUATIONS)]
    values = job.ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
    spread = torch.tensor(values).std().item()
    return Estimate(sum(values) / len(values), spread / len(values) ** 0.5)


def _objective_value(objective: pyro.infer.ELBO, model: Program, job: Job) -> float:
    total = 0.0
    for pair, share, handler in job.weighted_pairs():
        with handler:
            value = objective.loss(model, pair.guide, *pair.args, **pair.kwargs)
            total -= share * value if share else 0.0
    return total
