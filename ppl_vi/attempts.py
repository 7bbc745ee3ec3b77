"""One fit, from one start."""

from __future__ import annotations

import copy
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
from ppl_vi.checkpoints import State
from ppl_vi.checkpoints.identity import Identity, digest, refuse_others
from ppl_vi.checkpoints.keeping import Keeper, understood
from ppl_vi.compilation import Execute, Execution, Wish
from ppl_vi.data.sources import DataSource
from ppl_vi.data.streaming import Stream
from ppl_vi.data.workers import worker_deaths_told
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
from ppl_vi.resuming import Run
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
from ppl_vi.stopping.reasons import Convergence, StopReason
from ppl_vi.stopping.watching import Watch, has_time_for_stages
from ppl_vi.sweeping.dividing import unite
from ppl_vi.sweeping.guides import is_swept
from ppl_vi.sweeping.sweeper import Sweeper, check_settings
from ppl_vi.threads import threads_for
from ppl_vi.training import Callback, Past, judged, train

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


def attempt(
    settings: Settings, restart: int, bar: tqdm[Any], keeper: Keeper, past: State = None
) -> FitResult:
    """Fit from one start, in a parameter scope of its own.

    Args:
        settings: what every restart of a fit has in common.
        restart: its number; those after the first start elsewhere.
        bar: shows the steps.
        keeper: writes checkpoints.
        past: the checkpoint of this restart to go on from; ``None`` to begin it.
    """
    run = Run(keeper, past)
    with worker_deaths_told(), pyro.get_param_store().scope():
        with restored_on_error():
            job, structure = _prepare(settings, restart, run)
        with threads_for(structure, job.usual_pair()):
            return _trained(settings, job, structure, run, bar)


def _trained(
    settings: Settings, job: Job, structure: Structure, run: Run, bar: tqdm[Any]
) -> FitResult:
    objective = copy.copy(settings.objective)  # Pyro's remember the plates of their first model
    model = job.model if is_swept(job.guide) else model_for(objective, job, structure)
    start = FittedParameters.capture((job.model, job.guide))
    start = run.starts(start, settings.restarts > 1)
    moved = _moved(settings, objective, model, job, run, bar)
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
        seconds=run.seconds,
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
    settings: Settings,
    objective: pyro.infer.ELBO,
    model: Program,
    job: Job,
    run: Run,
    bar: tqdm[Any],
) -> _Moved:
    """Take all steps, of gradients or of exact updates."""
    if is_swept(job.guide):
        return _swept(settings, job, run, bar)
    estimators = estimators_of(objective, job)
    if not bar.disable and bar.n == 0 and estimators:
        bar.write(f"estimators: {in_words(estimators)}")
    weighted = annealed(objective, settings.kl_schedule, job, settings.steps)
    if run.past is not None:
        run.restore(objective)
    parameters = _trainable()
    stepper = _stepper(
        settings,
        parameters,
        lambda: INITIAL_RATE if run.past else _searched(weighted, model, job, parameters, bar),
    )
    watch, past = _watch(settings, weighted, stepper), Past()
    eager = _eager(settings, weighted, model, job, stepper)
    planned = _planned(settings, weighted, stepper)
    if run.past is not None:
        refuse_others(run.name, run.past["planned"], planned)
        past = _past(settings, run, eager, watch)
        bar.update(len(past.losses))
    if past.reason is None:
        runner = _runner(settings, weighted, job, bar, parameters, eager, run.past)
        if run.past is not None:
            run.go_on()

        def state() -> State:
            return {"past": past.state(), "watch": watch.state(), "runner": runner.state()}

        keep = run.keep(state, planned, objective, len(past.losses))
        train(runner, settings.steps, settings.callbacks, bar, watch, past, keep, job.ranks)
        runner.finish()
        execution = runner.execution
    else:
        run.go_on()
        execution = Execution(**run.past["runner"]["execution"])
    told = watch.told(past.reason or StopReason.STEPS)
    return _Moved(past.losses, told, estimators, execution)


def _past(settings: Settings, run: Run, eager: EagerRunner, watch: Watch) -> Past:
    """The steps before the fit was cut, and whether these were all."""
    with understood(run.name):
        eager.go_on(run.past["runner"]["eager"])
        watch.go_on(run.past["watch"])
        past = Past.of(run.past["past"])
    if not past.stays_ended(settings.callbacks):
        past.reason = judged(past, settings.steps, watch)
    return past


def _swept(settings: Settings, job: Job, run: Run, bar: tqdm[Any]) -> _Moved:
    """Make all sweeps."""
    guide: Any = job.guide
    steps, tol, wish = settings.steps, settings.tol, settings.compile
    sweeper = Sweeper(guide, job, steps, tol, wish, settings.callbacks, bar)
    if run.past is not None:
        run.restore()
        with understood(run.name):
            sweeper.go_on(run.past["sweeper"])
        bar.update(len(sweeper.past.losses))
        run.go_on()
    keep = run.keep(lambda: {"sweeper": sweeper.state()}, {}, done=len(sweeper.past.losses))
    swept = sweeper.run(keep)
    return _Moved(swept.losses, swept.convergence, {}, swept.execution, swept.bound)


def _planned(settings: Settings, objective: pyro.infer.ELBO, stepper: Stepper) -> Identity:
    """What the steps depend on, in words, besides what all restarts have in common."""
    own = settings.optimizer not in (None, "search")
    staged = isinstance(stepper, TorchStepper) and stepper.staged is not None
    found = {"optimizer": stepper.words if own else str(settings.optimizer)}
    if not own and not staged:
        found["steps, over which the learning rate falls,"] = f"{settings.steps:,}"
    scheduled = objective.scheduled if isinstance(objective, Objective) else None
    if scheduled is not None:
        found["kl_schedule"] = f"content {digest(scheduled.table)}"
    return found


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


def _eager(
    settings: Settings, objective: pyro.infer.ELBO, model: Program, job: Job, stepper: Stepper
) -> EagerRunner:
    """Who takes single steps."""
    return EagerRunner(
        loss_and_grads_of(objective, model, job),
        Stream(settings.source),
        stepper,
        settings.on_nan,
        lambda batch: blame(job, batch),
        objective.scheduled if isinstance(objective, Objective) else None,
        summed_over(job.ranks),
    )


def _runner(
    settings: Settings,
    objective: pyro.infer.ELBO,
    job: Job,
    bar: tqdm[Any],
    parameters: dict[str, Tensor],
    eager: EagerRunner,
    past: State,
) -> Execute:
    """Who takes the steps."""

    def tell(line: str) -> None:
        if not bar.disable:
            bar.write(line)

    planned = settings.steps * settings.restarts
    stops = settings.on_nan != "skip"
    return Execute(
        settings.compile,
        objective,
        job,
        parameters,
        eager,
        stops,
        planned,
        tell,
        past and past["runner"],
    )


def _prepare(settings: Settings, restart: int, run: Run) -> tuple[Job, Structure]:
    """Build the guide, create every parameter at its start, and check that all fits together."""
    s, known = settings, run.past and run.past["programs"]["values"]
    job, begin = new_job(s.model, s.guide, s.source, s.data_plate, restart, known)
    if is_swept(job.guide):
        check_settings(s.objective, s.optimizer, s.kl_schedule)
    structure = begin(s.compile)
    run.meet(job)
    return job, structure


def _trainable() -> dict[str, Tensor]:
    parameters = trainable()
    if not parameters:
        raise GuideError(
            "neither the guide nor the model has a trainable parameter, so there is nothing to fit. "
            "Declare one with pyro.param, pyro.module or a PyroModule."
        )
    return parameters
