"""What an estimator of one site's gradient is, and what a baseline is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from ppl_vi.program import Latent, Site


class Baseline(ABC):
    """Foretells the log-weight downstream of a draw, from other draws only."""

    @abstractmethod
    def check(self, site: Site, num_particles: int) -> None:
        """Raise a ValueError if the baseline cannot serve the site."""

    @abstractmethod
    def __call__(self, downstream: Tensor) -> Tensor:
        """The baseline: ``[num_particles, *plates]``, independent of each particle's own draw.

        Args:
            downstream: ``[num_particles, *plates]``, the log-weight that depends on the draw.
        """


class Estimator(ABC):
    """How the gradient passes through the draws of one site; it sees no bound.

    An estimator changes the gradient's variance, never what the gradient is an estimate of.
    """

    uses_credit: ClassVar[bool]
    """Whether the surrogate has a term for the site, besides the bound of the drawn values."""

    @property
    def subtracted(self) -> Baseline | None:
        """The baseline that is subtracted from the credit, if any."""
        return None

    @abstractmethod
    def check(self, site: Site, num_particles: int) -> None:
        """Raise a ValueError if the estimator cannot serve the site."""

    @abstractmethod
    def draw(self, distribution: Any) -> Tensor:
        """Draw the site, ``[*batch, *event]``, attached to the guide's parameters or not."""

    @abstractmethod
    def term(self, latent: Latent, credit: Tensor) -> Tensor:
        """The site's addend to the surrogate, a scalar.

        Args:
            latent: the site's draws and their score.
            credit: ``[num_particles, *plates]``, how much of the bound each draw is answerable for.
        """
