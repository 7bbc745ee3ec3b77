"""One fit, from one start."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.infer
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.annealing import KLSchedule, annealed
from ppl_vi.beginning import new_job
from ppl_vi.blame import blame
from ppl_vi.compilation import Execute, Execution, Wish
from ppl_vi.data.sources import DataSource
from ppl_vi.data.streaming import Stream
from ppl_vi.diagnostics.latent_report import collapse_remarks
from ppl_vi.errors import GuideError
from ppl_vi.estimate import Estimate
from ppl_vi.evaluation import estimate_elbo
from ppl_vi.job import Job
from ppl_vi.objectives import Objective
from ppl_vi.parameters import FittedParameters, trainable
from ppl_vi.partial import PartialGuide
from ppl_vi.preparation import forget
from ppl_vi.program import Structure
from ppl_vi.randomness import restored_on_error
from ppl_vi.ranks.steps import summed_over
from ppl_vi.registry import has_last_word
from ppl_vi.result import FitResult
from ppl_vi.running import (
    estimators_of,
    final_bound,
    in_words,
    loss_and_grads_of,
    model_for,
    states_after,
)
from ppl_vi.stepping.optimization import (
    OptimizerChoice,
    Stepper,
    TorchStepper,
    make_stepper,
)
from ppl_vi.stepping.rate_search import searched_rate
from ppl_vi.stepping.rates import INITIAL_RATE
from ppl_vi.stepping.runners import EagerRunner, OnNan
from ppl_vi.stopping.convergence import Tolerance
from ppl_vi.stopping.reasons import Convergence
from ppl_vi.stopping.watching import Watch, has_time_for_stages
from ppl_vi.sweeping import check_settings, is_swept, sweep_to_rest, unite
from ppl_vi.threads import threads_for
from ppl_vi.training import Callback, train

Program = Callable[..., Any]


@dataclass(frozen=True)
class Settings:
    """What every restart of a fit has in common."""

    model: Program
    guide: str | type[AutoGuide] | Program | PartialGuide
    source: DataSource
    data_plate: str | None
    objective: pyro.infer.ELBO
    optimizer: OptimizerChoice
    steps: int
    callbacks: tuple[Callback, ...]
    on_nan: OnNan
    compile: Wish
    restarts: int
    kl_schedule: KLSchedule | None
    seed: int | None
    tol: Tolerance | None


def attempt(settings: Settings, restart: int, bar: tqdm[Any]) -> FitResult:
    """Fit from one start, in a parameter scope of its own.

    Args:
        settings: what every restart of a fit has in common.
        restart: its number; those after the first start elsewhere.
        bar: shows the steps.
    """
    started = time.perf_counter()
    with pyro.get_param_store().scope():
        with restored_on_error():
            job, structure = _prepare(settings, restart)
        with threads_for(structure, job.usual_pair()):
            return _trained(settings, job, structure, started, bar)


def _trained(
    settings: Settings, job: Job, structure: Structure, started: float, bar: tqdm[Any]
) -> FitResult:
    objective = copy.copy(settings.objective)  # Pyro's remember the plates of their first model
    model = job.model if is_swept(job.guide) else model_for(objective, job, structure)
    start = FittedParameters.capture((job.model, job.guide))
    moved = _moved(settings, objective, model, job, bar)
    if has_last_word(job.guide):
        job.guide.finish_fit(job)
        forget(job.usual_pair())  # it may have become another distribution
    elbo = estimate_elbo(job.weighted_pairs(), job.ranks)
    unite(job)
    exact = moved.bound is not None
    return FitResult(
        job=job.alone,
        start=start,
        fitted=FittedParameters.capture((job.model, job.guide)),
        losses=torch.tensor(moved.losses),
        bound=final_bound(objective, model, job, elbo) if moved.bound is None else moved.bound,
        elbo=elbo,
        estimators=moved.estimators,
        num_steps=len(moved.losses),
        seconds=time.perf_counter() - started,
        stop_reason=moved.convergence.verdict,
        states={} if exact else states_after(objective, job),
        execution=moved.execution,
        remarks=(
            *moved.convergence.advice,
            *_remarks(job),
        ),
        objective=settings.objective,
        seed=settings.seed,
        convergence=moved.convergence,
    )


def _remarks(job: Job) -> tuple[str, ...]:
    if is_swept(job.guide):
        return job.guide.remarks()
    alone = job.alone
    return collapse_remarks(job if alone.source.others else alone)


class _Moved(NamedTuple):
    """What became of the parameters, and how."""

    losses: list[float]
    convergence: Convergence
    estimators: dict[str, str]
    execution: Execution
    bound: Estimate | None = None


def _moved(
    settings: Settings, objective: pyro.infer.ELBO, model: Program, job: Job, bar: tqdm[Any]
) -> _Moved:
    """Take all steps, of gradients or of exact updates."""
    if is_swept(job.guide):
        steps, tol, wish = settings.steps, settings.tol, settings.compile
        swept = sweep_to_rest(job.guide, job, steps, tol, wish, settings.callbacks, bar)
        return _Moved(swept.losses, swept.convergence, {}, swept.execution, swept.bound)
    estimators = estimators_of(objective, job)
    if not bar.disable and bar.n == 0 and estimators:
        bar.write(f"estimators: {in_words(estimators)}")
    weighted = annealed(objective, settings.kl_schedule, job, settings.steps)
    parameters = _trainable()
    stepper = _stepper(
        settings, parameters, lambda: _searched(weighted, model, job, parameters, bar)
    )
    watch = _watch(settings, weighted, stepper)
    runner = _runner(settings, weighted, model, job, bar, parameters, stepper)
    losses, convergence = train(runner, settings.steps, settings.callbacks, bar, watch, job.ranks)
    runner.finish()
    return _Moved(losses, convergence, estimators, runner.execution)


def _stepper(
    settings: Settings, parameters: dict[str, Tensor], search: Callable[[], float]
) -> Stepper:
    for parameter in parameters.values():
        parameter.grad = None  # of someone else's training
    staged = settings.tol is not None and has_time_for_stages(settings.steps)
    optimizer, rate = settings.optimizer, INITIAL_RATE
    if optimizer == "search":
        optimizer, rate = None, search()
    return make_stepper(optimizer, parameters, settings.steps, staged, rate)


def _searched(
    objective: pyro.infer.ELBO,
    model: Program,
    job: Job,
    parameters: dict[str, Tensor],
    bar: tqdm[Any],
) -> float:
    """A learning rate found in short runs, and told."""
    start = FittedParameters.capture((job.model, job.guide))
    losses = loss_and_grads_of(objective, model, job)
    rate = searched_rate(losses, job.source, parameters, start)
    if not bar.disable:
        bar.write(f"learning rate: {rate}")
    return rate


def _watch(settings: Settings, objective: pyro.infer.ELBO, stepper: Stepper) -> Watch:
    """Who sees the losses: from the step on from which the objective stays the same."""
    rate = stepper.staged if isinstance(stepper, TorchStepper) else None
    ours = (
        settings.optimizer in (None, "search") and rate is None
    )  # a fall that is planned looks like rest
    scheduled = objective.scheduled if isinstance(objective, Objective) else None
    settled = 0 if scheduled is None else scheduled.settled
    tol = None if ours else settings.tol
    return Watch(tol, settings.steps, rate, lambda: list(trainable().values()), settled)


def _runner(
    settings: Settings,
    objective: pyro.infer.ELBO,
    model: Program,
    job: Job,
    bar: tqdm[Any],
    parameters: dict[str, Tensor],
    stepper: Stepper,
) -> Execute:
    """Who takes the steps."""
    eager = EagerRunner(
        loss_and_grads_of(objective, model, job),
        Stream(settings.source),
        stepper,
        settings.on_nan,
        lambda batch: blame(job, batch),
        objective.scheduled if isinstance(objective, Objective) else None,
        summed_over(job.ranks),
    )

    def tell(line: str) -> None:
        if not bar.disable:
            bar.write(line)

    planned = settings.steps * settings.restarts
    stops = settings.on_nan != "skip"
    return Execute(settings.compile, objective, job, parameters, eager, stops, planned, tell)


def _prepare(settings: Settings, restart: int) -> tuple[Job, Structure]:
    """Build the guide, create every parameter at its start, and check that all fits together."""
    s = settings
    job, begin = new_job(s.model, s.guide, s.source, s.data_plate, restart)
    if is_swept(job.guide):
        check_settings(s.objective, s.optimizer, s.kl_schedule)
    return job, begin(s.compile)


def _trainable() -> dict[str, Tensor]:
    parameters = trainable()
    if not parameters:
        raise GuideError(
            "neither the guide nor the model has a trainable parameter, so there is nothing to fit. "
            "Declare one with pyro.param, pyro.module or a PyroModule."
        )
    return parameters
