"""fit(): a model, a guide and data in, a posterior out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pyro
import pyro.infer
import torch
from pyro.infer.autoguide import AutoGuide
from tqdm.auto import tqdm

from ppl_vi.annealing import KLSchedule
from ppl_vi.attempts import Settings
from ppl_vi.checkpoints.keeping import Keeper
from ppl_vi.compilation import Wish
from ppl_vi.objectives import ELBO
from ppl_vi.options import check_alike, check_callbacks, check_checkpoint, check_options
from ppl_vi.partial import PartialGuide
from ppl_vi.randomness import checked_seed, forked_rng, random_state, use_random_state
from ppl_vi.ranks.group import ALONE, Ranks, joined, local_device, spoken_by_first
from ppl_vi.ranks.shards import Shard, shared_source
from ppl_vi.restarts import Race
from ppl_vi.result import FitResult
from ppl_vi.resuming import fit_state, refuse_other_fits
from ppl_vi.stepping.optimization import OptimizerChoice
from ppl_vi.stepping.runners import OnNan
from ppl_vi.stopping.convergence import Tolerance
from ppl_vi.stopping.reasons import StopReason
from ppl_vi.training import Callback

Program = Callable[..., Any]

_FEW = 100
"""Fewer steps than these are not meant to be enough."""


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
    tol: Tolerance | None = "auto",
    restarts: int = 1,
    seed: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1_000,
    resume: bool = False,
    on_nan: OnNan = "raise",
    kl_schedule: KLSchedule | None = None,
    shard: Shard | None = "split",
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
            the mode; ``"structured"``, ``"mixture"`` or ``"flow"`` where the posterior bends or has
            several modes; ``"cavi"`` for exact updates of a conjugate model; an ``EncoderGuide`` to
            amortize a latent of rows.
        data: a tensor or array is one positional argument; a tuple positional, a dict keyword
            arguments; a ``Dataset`` or ``DataLoader`` gives minibatches; ``None`` is no argument.
            Floating-point arrays take torch's default dtype, tensors keep theirs. Arrays on disk
            (memory maps, Zarr, HDF5) are read rows by rows. Exact updates look at large data, and at a
            ``Dataset`` without ``batch_size``, part by part, all of them in each sweep.
        objective: one of ours or any ``pyro.infer.ELBO``; by default ``ELBO()``.
        optimizer: a torch optimizer class, a function from parameters to an optimizer or a
            scheduler around one, or a Pyro optimizer; schedulers move once a step. By default Adam
            with a falling rate (see ``tol``); ``"search"`` first looks for its rate in short runs.
        steps: the most gradient steps, or sweeps of exact updates.
        batch_size: rows in a minibatch. Tensors as long as the first one are rows.
        data_plate: the plate over the rows, where the model leaves a doubt.
        compile: ``True`` compiles the whole step, many steps to a call; ``False`` runs the programs in
            each step. ``"auto"`` compiles where the planned steps repay the compiler's time, and
            where not, it repeats the step's operations without the programs around them. The same
            draws give the same steps, to rounding.
        tol: when to stop before that. ``"auto"``: when the bound climbs no more than its noise hides,
            and lowering the rate of the default optimizer gains no more either; of exact updates when
            the ELBO rises by rounding alone. A number is a gain in nats below which to stop, ``None``
            takes all steps. Unless it is ``None``, and where 3,600 steps or more are allowed, the
            default rate stays constant until the bound rests, and the mean of the last iterates is the
            answer; an optimizer of your own is left as it is.
        restarts: independent fits; the one whose objective is highest on all rows (the same
            draws for each) is returned, and ``result.restarts`` tells of all. Names
            and classes of guides, and those of exact updates, start each from another place, other
            guides that are objects always from the same.
        seed: for everything random; the global random state is left as it was.
        progress: show a progress bar with the smoothed ELBO.
        callbacks: called with a ``Progress`` after each step; one that returns True stops the fit.
        checkpoint: a file that the state of the fit is written to, whole or not at all: at the first
            step, every ``checkpoint_every`` steps, at the last one, and where Ctrl-C or SIGTERM ends
            the fit between two steps. It is replaced each time, and stays when the fit is over.
        checkpoint_every: steps from one to the next; compiled steps write at the end of a hundred.
        resume: go on from the file, bit for bit as a fit that was never cut on this machine with as
            many threads; where there is none yet, begin. Model, guide, data and settings must be those
            of the file, but for ``steps`` (unless a schedule was laid over them), ``callbacks``,
            ``progress``, ``checkpoint_every`` and ``device``. What callbacks know is not in the file.
        on_nan: what to do where a loss or a gradient is not finite: ``"raise"`` an error that names
            step, site and parameter; ``"skip"`` the step; or ``"rollback"`` to the last good state of
            parameters and optimizer, kept every 100 steps, and go on with half the learning rate, at
            most 10 times. Exact updates raise, since they would come to the same again.
        kl_schedule: weights on the KL terms of latents in the gradient: a number of 0 or more, a
            function from the step (0, 1, ...) to one, or a dict of these by site. It counts log p and
            log q of a latent alike; losses, ``bound`` and ``elbo`` are those of weight 1.
        shard: how several processes, started by ``torchrun``, share the rows: ``"split"`` takes a part
            of those that each of them is given, which are all; ``"given"`` takes all rows of each,
            which are parts. ``None`` lets every process fit by itself. One process alone has all rows.
        device: where the data are put; with several processes ``"cuda"`` is a GPU for each.

    Returns:
        The fitted posterior.

    Raises:
        GuideError, ModelError, DataError: before the first step, where programs or data do not fit.
        FloatingPointError: a loss or gradient is not finite, with ``on_nan="raise"`` or after the last
            rollback.
        CompileError: with ``compile=True``, the programs do what a compiled step cannot repeat.
        RanksError: another process of the same fit failed, or ended.
        CheckpointError: the checkpoint cannot be written at the beginning, or the one to go on from is
            damaged, newer than this code, or of another fit; the message names what differs.

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
    with nullcontext(ALONE) if shard is None else joined(device) as ranks:
        check_options(objective, steps, restarts, on_nan, compile, tol, shard)
        check_callbacks(callbacks)
        check_checkpoint(checkpoint, checkpoint_every, resume)
        seed = None if seed is None else checked_seed(seed)
        steps, restarts, checkpoint_every = int(steps), int(restarts), int(checkpoint_every)
        check_alike(
            ranks,
            steps=steps,
            restarts=restarts,
            batch_size=batch_size,
            seed=seed,
            tol=tol,
            shard=shard,
            checkpoint=checkpoint is not None,
            checkpoint_every=checkpoint_every,
            resume=resume,
        )
        settings = Settings(
            model,
            guide,
            shared_source(data, batch_size, local_device(device), shard, ranks),
            data_plate,
            objective,
            optimizer,
            steps,
            tuple(callbacks),
            on_nan,
            compile,
            restarts,
            kl_schedule,
            seed,
            tol,
        )
        keeper = Keeper(checkpoint, checkpoint_every, ranks)
        with spoken_by_first(ranks), _state_kept(seed, ranks):
            best = _best(settings, keeper, resume, progress and ranks.first)
    if best.stop_reason is StopReason.CLIMBING and steps >= _FEW and ranks.first:
        warnings.warn(" ".join(best.remarks[:1]), stacklevel=2)
    return best


def _best(settings: Settings, keeper: Keeper, resume: bool, progress: bool) -> FitResult:
    """The best of all restarts, whose parameters the programs then have."""
    past = keeper.found() if resume else None
    if keeper.writes:
        keeper.common = fit_state(settings)
    if past is not None:
        refuse_other_fits(keeper, past)
    total = settings.steps * settings.restarts
    with tqdm(total=total, disable=not progress, unit="step") as bar:
        race = Race(settings, bar, keeper)
        best = race.run(past)
        keeper.end()
        best.fitted.restore()
        tried = tuple(race.tried) if settings.restarts > 1 else ()
        best = replace(best, restarts=tried)
        for line in () if bar.disable else (*map(str, tried), *best.remarks):
            bar.write(line)
    return best


@contextmanager
def _state_kept(seed: int | None, ranks: Ranks) -> Iterator[None]:
    """Restore the default dtype and, where a seed is given, the random state; take gradients.

    Without one, several processes go on from the random state of the first.
    """
    dtype = torch.get_default_dtype()
    randomness = nullcontext() if seed is None else forked_rng(seed=seed)
    if ranks.size > 1 and seed is None:
        use_random_state(ranks.gathered(random_state())[0])
    with torch.inference_mode(False), torch.enable_grad(), randomness:
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
