"""fit(): a model, a guide and data in, a posterior out."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import pyro
import pyro.infer
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.annealing import KLSchedule, annealed
from ppl_vi.compilation import Execute, Execution, Wish
from ppl_vi.data import Batch, DataSource, data_source
from ppl_vi.diagnostics.latent_report import collapse_remarks
from ppl_vi.errors import GuideError
from ppl_vi.estimate import Estimate
from ppl_vi.evaluation import estimate_elbo
from ppl_vi.job import Job, data_plates_of
from ppl_vi.objectives import ELBO, Objective
from ppl_vi.optimization import OptimizerChoice, make_stepper
from ppl_vi.parameters import FittedParameters, trainable
from ppl_vi.partial import PartialGuide
from ppl_vi.preparation import forget, structure_of
from ppl_vi.program import StartingValues, Structure, draw_plainly, run
from ppl_vi.randomness import forked_rng
from ppl_vi.registry import has_last_word
from ppl_vi.result import FitResult
from ppl_vi.runners import EagerRunner, OnNan
from ppl_vi.running import (
    estimators_of,
    final_bound,
    in_words,
    loss_and_grads_of,
    model_for,
    states_after,
)
from ppl_vi.starting import initial_values, look_at, resolve_guide
from ppl_vi.stopping import StopReason
from ppl_vi.streaming import Stream
from ppl_vi.sweeping import ROWS_TO_START, check_settings, is_swept, sweep_to_rest
from ppl_vi.threads import threads_for
from ppl_vi.training import Callback, train

Program = Callable[..., Any]


def fit(
    model: Program,
    guide: str | type[AutoGuide] | Program | PartialGuide = "normal",
    data: Any = None,
    *,
    objective: pyro.infer.ELBO | None = None,
    optimizer: OptimizerChoice = None,
    steps: int = 10_000,
    batch_size: int | None = None,
    data_plate: str | None = None,
    compile: Wish = "auto",
    restarts: int = 1,
    seed: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    on_nan: OnNan = "raise",
    kl_schedule: KLSchedule | None = None,
    device: torch.device | str | None = None,
) -> FitResult:
    """Fit a guide to the posterior of a Pyro model, by stochastic gradients of a bound.

    Maximises the objective over the parameters of the guide, and those of the model
    (``pyro.param``), with log p(x) = ELBO + KL(q || p) for the ELBO. Noisy: gradients are estimated
    from particles and, with ``batch_size``, from rows; ``result.elbo`` has its standard error.

    Args:
        model: a Pyro model. Discrete latents that the guide leaves out are summed out exactly.
            If it has ``initial_values``, called like the model, guides start at the dict of values by
            site or parameter that it returns.
        guide: ``"normal"``, ``"multivariate_normal"``, ``"lowrank"``, ``"delta"``, any Pyro guide,
            or an autoguide (instance or class); ``"laplace"`` for the Gaussian of the curvature at
            the mode; ``"cavi"`` for exact updates of a conjugate model; an ``EncoderGuide`` to amortize
            a latent of rows.
        data: a tensor or array is one positional argument; a tuple positional, a dict keyword
            arguments; a ``Dataset`` or ``DataLoader`` gives minibatches; ``None`` is no argument.
            Floating-point arrays take torch's default dtype, tensors keep theirs.
        objective: one of ours or any ``pyro.infer.ELBO``; by default ``ELBO()``.
        optimizer: a torch optimizer class, a function from parameters to an optimizer or a
            scheduler around one, or a Pyro optimizer; schedulers move once a step. By default Adam
            with a geometrically falling rate.
        steps: gradient steps; of exact updates the most sweeps.
        batch_size: rows in a minibatch. Tensors as long as the first one are rows.
        data_plate: the plate over the rows, where the model leaves a doubt.
        compile: ``True`` compiles the whole step, many steps to a call; ``False`` runs the programs in
            each step. ``"auto"`` compiles where the planned steps repay the compiler's time, and
            where not, it repeats the step's operations without the programs around them. The same
            draws give the same steps, to rounding.
        restarts: independent fits; the one whose objective is highest on all rows is returned. Names
            and classes of guides, and those of exact updates, start each from another place, other
            guides that are objects always from the same.
        seed: for everything random; the global random state is left as it was.
        progress: show a progress bar with the smoothed ELBO.
        callbacks: called with a ``Progress`` after each step; one that returns True stops the fit.
        on_nan: ``"raise"``, or ``"skip"`` steps whose loss or gradient is not finite.
        kl_schedule: weights on the KL terms of latents in the gradient: a number of 0 or more, a
            function from the step (0, 1, ...) to one, or a dict of these by site. It counts log p and
            log q of a latent alike; losses, ``bound`` and ``elbo`` are those of weight 1.
        device: where the data are put.

    Returns:
        The fitted posterior.

    Raises:
        GuideError, ModelError, DataError: before the first step, where programs or data do not fit.
        FloatingPointError: a loss or gradient is not finite, with ``on_nan="raise"``.
        CompileError: with ``compile=True``, the programs do what a compiled step cannot repeat.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> result = fit(model, "normal", torch.ones(100), steps=500, seed=0, progress=False)
        >>> round(result.sample(2_000)["mean"].mean().item(), 1)
        1.0

    Source: Ranganath, Gerrish and Blei (2014); Kucukelbir et al. (2017).
    """
    objective = ELBO() if objective is None else objective
    _check_options(objective, steps, restarts, on_nan, compile)
    source = data_source(data, batch_size, device)
    settings = _Settings(
        model,
        guide,
        source,
        data_plate,
        objective,
        optimizer,
        steps,
        tuple(callbacks),
        on_nan,
        compile,
        restarts,
        kl_schedule,
    )
    with _state_kept(seed), tqdm(total=steps * restarts, disable=not progress, unit="step") as bar:
        best = first = _fit_once(settings, 0, bar)
        for restart in range(1, restarts):
            bar.set_description_str(f"restart {restart + 1} of {restarts}")
            first.start.restore()  # modules that the programs hold begin every restart alike
            best = max(best, _fit_once(settings, restart, bar), key=_finite_bound)
        best.fitted.restore()
        for line in () if bar.disable else best.remarks:
            bar.write(line)
    return best


@contextmanager
def _state_kept(seed: int | None) -> Iterator[None]:
    """Restore the default dtype and, where a seed is given, the random state; take gradients."""
    dtype = torch.get_default_dtype()
    randomness = nullcontext() if seed is None else forked_rng(seed=seed)
    with torch.inference_mode(False), torch.enable_grad(), randomness:
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _check_options(objective: Any, steps: Any, restarts: Any, on_nan: Any, compile: Any) -> None:
    if not isinstance(objective, pyro.infer.ELBO):
        raise TypeError(
            f"objective: pass a ppl_vi objective or a pyro.infer.ELBO, not {objective!r}."
        )
    for name, value in (("steps", steps), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}.")
    if on_nan not in ("raise", "skip"):
        raise ValueError(f"on_nan must be 'raise' or 'skip', not {on_nan!r}.")
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f"compile must be 'auto', True or False, not {compile!r}.")


def _finite_bound(result: FitResult) -> float:
    """By what restarts compare; a NaN would compare with nothing."""
    return -math.inf if math.isnan(result.bound) else result.bound


@dataclass(frozen=True)
class _Settings:
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


def _fit_once(settings: _Settings, restart: int, bar: tqdm[Any]) -> FitResult:
    """Fit from one start, in a parameter scope of its own."""
    started = time.perf_counter()
    with pyro.get_param_store().scope():
        job, structure = _prepare(settings, restart)
        with threads_for(structure, job.usual_pair()):
            return _trained(settings, job, structure, started, bar)


def _trained(
    settings: _Settings, job: Job, structure: Structure, started: float, bar: tqdm[Any]
) -> FitResult:
    objective = copy.copy(settings.objective)  # Pyro's remember the plates of their first model
    model = job.model if is_swept(job.guide) else model_for(objective, job, structure)
    start = FittedParameters.capture((job.model, job.guide))
    moved = _moved(settings, objective, model, job, bar)
    if has_last_word(job.guide):
        job.guide.finish_fit(job)
        forget(job.usual_pair())  # it may have become another distribution
    elbo = estimate_elbo(job.weighted_pairs())
    exact = moved.bound is not None
    return FitResult(
        job=job,
        start=start,
        fitted=FittedParameters.capture((job.model, job.guide)),
        losses=torch.tensor(moved.losses),
        bound=final_bound(objective, model, job, elbo) if moved.bound is None else moved.bound,
        elbo=elbo,
        estimators=moved.estimators,
        num_steps=len(moved.losses),
        seconds=time.perf_counter() - started,
        stop_reason=moved.reason,
        states={} if exact else states_after(objective, job),
        execution=moved.execution,
        remarks=job.guide.remarks() if is_swept(job.guide) else collapse_remarks(job),
    )


class _Moved(NamedTuple):
    """What became of the parameters, and how."""

    losses: list[float]
    reason: StopReason
    estimators: dict[str, str]
    execution: Execution
    bound: Estimate | None = None


def _moved(
    settings: _Settings, objective: pyro.infer.ELBO, model: Program, job: Job, bar: tqdm[Any]
) -> _Moved:
    """Take all steps, of gradients or of exact updates."""
    if is_swept(job.guide):
        wish, calls = settings.compile, settings.callbacks
        swept = sweep_to_rest(job.guide, job, settings.steps, wish, calls, bar)
        return _Moved(swept.losses, swept.reason, {}, swept.execution, swept.bound)
    estimators = estimators_of(objective, job)
    if not bar.disable and bar.n == 0 and estimators:
        bar.write(f"estimators: {in_words(estimators)}")
    weighted = annealed(objective, settings.kl_schedule, job, settings.steps)
    runner = _runner(settings, weighted, model, job, bar)
    losses, reason = train(runner, settings.steps, settings.callbacks, bar)
    runner.finish()
    return _Moved(losses, reason, estimators, runner.execution)


def _runner(
    settings: _Settings, objective: pyro.infer.ELBO, model: Program, job: Job, bar: tqdm[Any]
) -> Execute:
    """Who takes the steps."""
    parameters = _trainable()
    for parameter in parameters.values():
        parameter.grad = None  # of someone else's training
    eager = EagerRunner(
        loss_and_grads_of(objective, model, job),
        Stream(settings.source),
        make_stepper(settings.optimizer, parameters, settings.steps),
        settings.on_nan,
        lambda batch: _blame(job, batch),
        objective.scheduled if isinstance(objective, Objective) else None,
    )

    def tell(line: str) -> None:
        if not bar.disable:
            bar.write(line)

    planned = settings.steps * settings.restarts
    stops = settings.on_nan == "raise"
    return Execute(settings.compile, objective, job, parameters, eager, stops, planned, tell)


def _prepare(settings: _Settings, restart: int) -> tuple[Job, Structure]:
    """Build the guide, create every parameter at its start, and check that all fits together."""
    model, source = settings.model, settings.source
    with pyro.get_param_store().scope():  # a look at the model creates no parameter
        plates = data_plates_of(model, source, settings.data_plate)
    values = initial_values(model, source)
    with StartingValues(values):
        guide = resolve_guide(settings.guide, model, source, plates, values, restart)
        if is_swept(guide):
            check_settings(settings.objective, settings.optimizer, settings.kl_schedule)
            batch = look_at(source, plates, ROWS_TO_START)
            wish, elsewhere = settings.compile, restart > 0
            guide.begin(batch.args, batch.kwargs, values, plates, elsewhere, wish)
        job = Job(model, guide, source, plates)
        if has_last_word(guide):
            guide.begin_fit(job)
        return job, job.check()


def _trainable() -> dict[str, Tensor]:
    parameters = trainable()
    if not parameters:
        raise GuideError(
            "neither the guide nor the model has a trainable parameter, so there is nothing to fit. "
            "Declare one with pyro.param, pyro.module or a PyroModule."
        )
    return parameters


def _blame(job: Job, batch: Batch) -> str:
    """Which sites have a log-probability that is not finite, in words."""
    pair = job.pair(batch)
    try:
        with torch.no_grad(), job.handler(batch):
            factors = run(structure_of(pair), pair, draw_plainly, 1).factors
    except (ValueError, RuntimeError) as error:
        return f"; {str(error).splitlines()[0].rstrip('.')}"
    bad = [f"'{n}'" for f in factors if not torch.isfinite(f.log_prob).all() for n in f.sites]
    return f"; log-probabilities that are not finite: {', '.join(bad)}" if bad else ""
