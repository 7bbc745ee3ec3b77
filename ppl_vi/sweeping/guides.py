"""What a guide that is fitted by exact updates can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from ppl_vi.compilation import Wish
from ppl_vi.data.sources import Batch
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.program import enumerable_sites, hide
from ppl_vi.program.row_draws import Part


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
