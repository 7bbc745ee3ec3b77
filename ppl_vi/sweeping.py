"""Guides that are fitted by exact updates, not by steps along gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.checkpoints import State
from ppl_vi.compilation import Execution, Wish
from ppl_vi.data.sources import Batch
from ppl_vi.data.streaming import Stream
from ppl_vi.errors import GuideError
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.objectives import ELBO
from ppl_vi.program import enumerable_sites, hide
from ppl_vi.program.row_draws import Part
from ppl_vi.ranks.shards import ShardedSource
from ppl_vi.repeating import Repeated
from ppl_vi.stopping.convergence import Tolerance
from ppl_vi.stopping.interrupting import interruptible
from ppl_vi.stopping.reasons import Convergence, StopReason
from ppl_vi.streamed import Streamed
from ppl_vi.training import Callback, Keep, Past, asked

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
"""Of the ELBO's own size; less than that is rounding."""
_PASS_TOLERANCE = 1e-5
"""Likewise, of the mean over one pass from that over the pass before."""


@runtime_checkable
class SweptGuide(Protocol):
    """A guide whose parameters are set by coordinate ascent.

    Attributes:
        delay: of the step size on minibatches, ``(t + delay) ** -forgetting``.
        forgetting: likewise.
        searched: what each sweep searches for, in words; empty where all updates are in closed form.
    """

    delay: float
    forgetting: float

    @property
    def searched(self) -> str: ...

    def begin(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: Mapping[str, Tensor],
        rows: frozenset[str] = frozenset(),
        elsewhere: bool = False,
        wish: Wish = "auto",
    ) -> None:
        """Set the parameters to a start: at values of sites where these are given, else at random.

        Parameters of the model start where the program puts them, unless ``elsewhere``. A long start is
        captured and compiled as sweeps are, unless the ``wish`` is ``False``.

        Raises:
            ModelError: the model does not allow of exact updates; the message names the site.
        """

    def tensors(self) -> tuple[Tensor, ...]:
        """All that a sweep or a step starts from."""

    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Take the tensors that a sweep or a step came to."""

    def swept(self) -> tuple[Tensor, ...]:
        """The exact ELBO after an update of every factor, and the tensors it comes to."""

    def divide(self, batch: Batch, rows: frozenset[str]) -> None:
        """Go on with the rows of one of several processes; ``rows`` are the plates over them.

        Raises:
            GuideError, ModelError: a factor does not allow of that; the message names the site.
        """

    def unite(self, batch: Batch, whole: bool) -> None:
        """Be by itself again, after the last sweep, with the factors of all rows if ``whole``."""

    def stepper(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], part: Part | None = None
    ) -> Callable[[Tensor | None], tuple[Tensor, ...]]:
        """From the size of a step on a minibatch to its bound and the tensors it comes to.

        ``None`` goes all the way: a sweep over these rows. They may be a ``part`` of a batch that
        several processes share.
        """

    @property
    def passes(self) -> int:
        """How often a sweep over parts of the rows looks at each of them."""

    def asked(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int, now: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The bound, and what these rows ask for in a pass of a sweep, which adds up over parts."""

    def asked_like(self, number: int) -> tuple[Tensor, ...]:
        """Tensors of the shapes that ``asked`` gives."""

    def answered(
        self, number: int, now: Sequence[Tensor], total: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The tensors that a pass comes to, from the sum of what all parts ask for but the bound."""

    def evaluated(self, elbo: float) -> Estimate:
        """The bound on all rows, from the ELBO of the last sweep."""

    def settle(self) -> None:
        """Set what sweeps leave out, after the last of them."""

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any], share: float) -> Tensor:
        """The bound with the factors of these rows, a share of all, at their optimum.

        It is asked for every batch once, after ``settle``.
        """

    def add_up(self, sum: Callable[[Tensor], Tensor]) -> None:
        """Bring together what several processes have counted, after ``settle`` and ``bound``."""

    def factors(self) -> dict[str, Any]:
        """The marginals of single sites that it knows, as Pyro distributions."""

    def noise(self) -> dict[str, Tensor]:
        """Draws that were made once, when it began, by site."""

    def use_noise(self, noise: Mapping[str, Tensor]) -> None:
        """Go on with such draws of another one."""

    def not_finite(self) -> tuple[str, ...]:
        """The sites whose factors have parameters that are not finite."""

    def remarks(self) -> tuple[str, ...]:
        """What a person should know of the fit that the ELBO does not say, a line each."""


class Swept(NamedTuple):
    """What came of sweeps.

    Attributes:
        losses: minus the ELBO after each sweep, exact; on minibatches as each batch tells it.
        convergence: why they stopped, and the last rise.
        execution: how they were made.
        bound: the ELBO on all rows, exact, or with its standard error where sites have draws.
    """

    losses: list[float]
    convergence: Convergence
    execution: Execution
    bound: Estimate


def is_swept(guide: Any) -> TypeGuard[SweptGuide]:
    """Whether a guide is fitted by sweeps."""
    return isinstance(guide, SweptGuide)


def marginalized(job: Job) -> Job:
    """The job with a guide that leaves finite discrete latents to be summed out exactly.

    Of guides that are fitted by sweeps only, which never draw another latent given these. To be called
    inside the fitted parameters.
    """
    guide = job.guide
    if not is_swept(guide):
        return job
    batch = next(job.source.sequence())
    with job.handler(batch):
        names = enumerable_sites(job.model, batch.args, batch.kwargs)
    return replace(job, guide=hide(job.guide, names)) if names else job


def check_settings(objective: Any, optimizer: Any, kl_schedule: Any) -> None:
    """Raise GuideError for settings of ``fit`` that mean nothing to exact updates."""
    reasons = {
        "objective": (type(objective) is not ELBO, "maximise the ELBO alone"),
        "optimizer": (optimizer is not None, "have no learning rate"),
        "kl_schedule": (kl_schedule is not None, "have no weights on KL terms"),
    }
    for setting, (given, reason) in reasons.items():
        if given:
            raise GuideError(f"{setting}: exact updates {reason}. Leave {setting} out.")


class Sweeper:
    """Sweeps until the ELBO rises no more, or so many sweeps are done.

    With minibatches a step takes one of them, and the ELBO is compared pass by pass.

    Args:
        guide: at its start.
        job: the guide with its data.
        steps: the most sweeps or steps.
        tol: a rise in nats at which to stop, ``"auto"`` for one that may be rounding, ``None`` to make
            all sweeps.
        wish: whether they are compiled.
        callbacks: told of every one.
        bar: shows the ELBO.

    Attributes:
        past: the sweeps that were made.
    """

    def __init__(
        self,
        guide: SweptGuide,
        job: Job,
        steps: int,
        tol: Tolerance | None,
        wish: Wish,
        callbacks: Sequence[Callback],
        bar: tqdm[None],
    ) -> None:
        self._guide, self._job, self._steps, self._tol = guide, job, steps, tol
        self._callbacks, self._bar = callbacks, bar
        streamed, batched = job.source.in_parts, job.source.batched
        self._sweeps: Repeated | Streamed = (
            Streamed(guide, job, wish, bar) if streamed else Repeated(guide, job, steps, wish, bar)
        )
        self._stream = Stream(job.source) if batched and not streamed else None
        self._size = sum(job.source.sizes().values()) if self._stream else 1
        self.past = Past()

    def state(self) -> State:
        """All that is not in the guide and the parameters, for another one to go on with."""
        return {
            "past": self.past.state(),
            "sweeps": self._sweeps.state(),
            "stream": self._stream and self._stream.state(),
        }

    def go_on(self, state: State) -> None:
        """Go on where another one was.

        Raises:
            CompileError: sweeps were captured or compiled, and cannot be here.
        """
        self.past = Past.of(state["past"])
        self._sweeps.go_on(state["sweeps"])
        if self._stream is not None:
            self._stream.go_on(state["stream"])

    def run(self, keep: Keep) -> Swept:
        """Make the sweeps.

        Args:
            keep: called after each of them.

        Raises:
            CompileError: they are to be compiled, and cannot be.
            FloatingPointError: the ELBO is not finite.
        """
        past = self.past
        if not past.stays_ended(self._callbacks):
            past.reason = self._judged()
        ranks = self._job.ranks
        with interruptible() as interrupted, _divided(self._job):
            try:
                while past.reason is None:
                    self._sweep()
                    told = asked(self._callbacks, past, interrupted, ranks)
                    past.reason = told or self._judged()
                    keep(len(past.losses), past.reason is not None)
            except KeyboardInterrupt:
                if not past.losses or ranks.size > 1:
                    raise
                past.reason = StopReason.INTERRUPTED
            self._guide.settle()
            bound = self._guide.evaluated(-past.losses[-1])
        return self._told(bound)

    def _sweep(self) -> None:
        done, guide = len(self.past.losses), self._guide
        if isinstance(self._sweeps, Streamed):
            loss = -self._sweeps.advance()
        else:
            rate = (done + 1 + guide.delay) ** -guide.forgetting
            batch = next(self._stream) if self._stream else None
            loss = -self._sweeps.advance(done, batch, rate)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"sweep {done + 1}: the ELBO is {-loss}{_broken(guide)}. Look for values that no site "
                f"can have (a scale below zero, data too large to square), or start nearer to the data "
                f"(initial_values)."
            )
        self.past.losses.append(loss)
        self.past.smoothed_loss = loss
        self._bar.set_postfix_str(f"ELBO {-loss:.6g}", refresh=False)
        self._bar.update()

    def _judged(self) -> StopReason | None:
        """Why to make no more sweeps, as the ELBO tells; ``None`` to go on."""
        losses, whole = self.past.losses, len(self.past.losses) % self._size == 0
        if self._tol is not None and whole and _rests(losses, self._size, self._tol):
            return StopReason.CONVERGED
        return StopReason.STEPS if len(losses) >= self._steps else None

    def _told(self, bound: Estimate) -> Swept:
        guide, size, losses = self._guide, self._size, self.past.losses
        reason = self.past.reason or StopReason.STEPS
        if reason is StopReason.STEPS and self._tol is not None and size == 1 and len(losses) > 1:
            reason = StopReason.CLIMBING
        if self._job.source.batched:
            over_batches = Estimate(bound_by_batches(guide, self._job))  # counts elements too
            bound = over_batches if self._stream else bound
        guide.add_up(self._job.ranks.sum)
        gain = _rise(losses, size) if len(losses) >= 2 * size else math.nan
        convergence = Convergence(reason, None, gain, 0.0 if size == 1 else math.nan)
        return Swept(losses, convergence, self._sweeps.execution, bound)


def divides(job: Job) -> bool:
    """Whether sweeps look at all rows that a process has at once, and others have others."""
    return isinstance(job.source, ShardedSource) and not job.source.batched


@contextmanager
def _divided(job: Job) -> Iterator[None]:
    """Where each of several processes has its rows in memory, they count for all of them."""
    with job.handler(job.source.whole()) if divides(job) else nullcontext():
        yield


def unite(job: Job) -> None:
    """The guide without the other processes, after the last sweep."""
    if is_swept(job.guide) and isinstance(job.source, ShardedSource) and divides(job):
        with job.handler(job.source.whole()):
            job.guide.unite(job.source.whole(), job.source.split)


def _broken(guide: SweptGuide) -> str:
    names = ", ".join(f"'{name}'" for name in guide.not_finite())
    return f"; factors that are not finite: {names}" if names else ""


def _rise(losses: Sequence[float], size: int) -> float:
    """Of the mean ELBO over the last pass, of so many losses, from that over the pass before."""
    return (sum(losses[-2 * size : -size]) - sum(losses[-size:])) / size


def _rests(losses: Sequence[float], size: int, tol: Tolerance) -> bool:
    """Whether the last pass over the data came to no more than the pass before."""
    if len(losses) < 2 * size:
        return False
    if tol != "auto":
        return _rise(losses, size) <= tol
    exact = _TOLERANCE.get(torch.get_default_dtype(), 1e-6)
    last = sum(losses[-size:]) / size
    return _rise(losses, size) <= (exact if size == 1 else _PASS_TOLERANCE) * (1 + abs(last))


def bound_by_batches(guide: SweptGuide, job: Job) -> float:
    """The exact ELBO on all rows, batch by batch; to be asked once after ``settle``."""
    total = 0.0
    for pair, share, handler in job.weighted_pairs():
        with handler:
            total += share * guide.bound(pair.args, pair.kwargs, share).item()
    return float(job.ranks.sum(torch.tensor(total, dtype=torch.float64)))
