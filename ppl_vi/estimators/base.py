"""What an estimator of one site's gradient is, and what a baseline is."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ppl_vi.estimators.draws import Draws
from ppl_vi.estimators.grid import Place
from ppl_vi.program import Latent, Site


class Given(NamedTuple):
    """What a baseline may look at besides the log-weights.

    Attributes:
        draws: the site's draws; a baseline must not let a draw foretell its own log-weight.
        state: what the baseline keeps from step to step; ``None`` if it has no state.
        args: the positional arguments of model and guide.
        kwargs: their keyword arguments.
    """

    draws: Draws
    state: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Choice:
    """Something a user chooses: shown as it would be written, defaults left out."""

    def __repr__(self) -> str:
        this: Any = self
        own = dataclasses.fields(this) if dataclasses.is_dataclass(this) else ()
        values = {field.name: getattr(self, field.name) for field in own}
        chosen = [field.name for field in own if values[field.name] != _default(field)]
        return f"{type(self).__name__}({', '.join(f'{n}={values[n]!r}' for n in chosen)})"


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


class Baseline(Choice, ABC):
    """Foretells the log-weight downstream of a draw, from other draws or earlier steps only."""

    needs_batch: ClassVar[bool] = False
    """Whether it looks at the parameters of the site's distribution."""

    def check(self, site: Site, num_particles: int) -> None:
        """Raise a GuideError if the baseline cannot serve the site."""

    def init(self, site: Site) -> nn.Module | None:
        """The state before the first step; the fit keeps it. ``None`` for a baseline without."""
        return None

    @abstractmethod
    def __call__(self, downstream: Tensor, given: Given | None = None) -> Tensor:
        """The baseline: ``[num_particles, ...]``, independent of each particle's own draw.

        Args:
            downstream: ``[num_particles, states, *plates]``, the log-weight that depends on a draw.
            given: what else there is to look at.
        """

    def update(self, downstream: Tensor, given: Given) -> None:
        """Learn from this step's draws, for the next steps: changes ``given.state`` in place."""


class Estimator(Choice, ABC):
    """How the gradient passes through the draws of one site; it sees no bound.

    An estimator changes the gradient's variance, never what the gradient is an estimate of.
    """

    uses_credit: ClassVar[bool]
    """Whether the surrogate has a term for the site, besides the bound of the drawn values."""

    linear_only: ClassVar[bool] = False
    """Whether it is right only for bounds that are a mean of log-weights."""

    needs_batch: ClassVar[bool] = False
    """Whether it needs a guide that runs all particles at once."""

    takes_apart: ClassVar[bool] = False
    """Whether it varies all elements of a plate at once, each for itself."""

    weighted: ClassVar[bool] = False
    """Whether draws carry weights; see ``log_weight``."""

    @property
    def subtracted(self) -> Baseline | None:
        """The baseline that is subtracted from the credit, if any."""
        return None

    @abstractmethod
    def check(self, site: Site, num_particles: int) -> None:
        """Raise a GuideError if the estimator cannot serve the site."""

    def num_replicas(self, site: Site) -> int:
        """How many alternatives to each draw the program is run at."""
        return 0

    def num_states(self, site: Site) -> int:
        """How many values of the site are summed over; 1 for a draw."""
        return 1

    def init(self, site: Site) -> nn.Module | None:
        """The state before the first step, which the fit keeps; ``None`` for no state."""
        return None

    @abstractmethod
    def draw(self, distribution: Any, place: Place) -> Tensor:
        """Draw the site, ``[*batch, *event]``, attached to the guide's parameters or not.

        Args:
            distribution: its batch shape starts with the particles, except where ``needs_batch`` is
                false and the guide runs one by one.
            place: how the particles are laid out.
        """

    def probe(self, latent: Latent) -> None:
        """Look at first draws, before the first step; raise a ValueError where they can't serve."""

    def log_weight(self, latent: Latent) -> Tensor:
        """``[particles, *plates]``: how much each draw counts, where ``weighted``."""
        raise NotImplementedError

    def term(self, draws: Draws, credit: Tensor, state: nn.Module | None) -> Tensor:
        """The site's addend to the surrogate, a scalar.

        Args:
            draws: the site's draws and their scores.
            credit: ``[num_particles, replicas, states, *plates]``, how much of the bound each draw is
                answerable for, counted for replicas from the draw itself. Detached.
            state: what the estimator keeps from step to step.
        """
        raise NotImplementedError


def usual(site: Site) -> str:
    """The estimator that suits a site as a rule, as one writes it."""
    return "Pathwise()" if site.reparameterizable else "ScoreFunction(LeaveOneOut())"
