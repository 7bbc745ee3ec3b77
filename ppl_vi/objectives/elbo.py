"""The evidence lower bound."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.estimators import Baseline, Estimators, LeaveOneOut, Pathwise, ScoreFunction
from ppl_vi.objectives.base import BoundObjective


class MeanObjective(BoundObjective, ABC):
    """The mean over particles of what each of them weighs."""

    linear: ClassVar[bool] = True

    def bound(self, log_w: Tensor) -> Tensor:
        return log_w.mean(0)

    def drop(self, log_w: Tensor, new: Tensor) -> Tensor:
        return (log_w - new) / log_w.shape[0]

    def share(self, log_w: Tensor) -> Tensor:
        return log_w / log_w.shape[0]


class EvidenceLowerBound(MeanObjective, ABC):
    """E_q[log p(x, z) - log q(z)], the mean of the log-weights."""


@dataclass(frozen=True)
class ELBO(EvidenceLowerBound):
    """The evidence lower bound, E_q[log p(x, z) - log q(z)] <= log p(x).

    Estimated as the mean of ``num_particles`` log-weights: unbiased, with a standard error that
    falls as one over the square root of ``num_particles``.

    Args:
        num_particles: S, draws from the guide in each estimate.
        estimators: one estimator for every site, a dict by site, or ``"auto"``.
        analytic: replace a site's log p - log q by minus their KL divergence, or -log q by the
            entropy, wherever torch has the closed form and the site's prior depends on nothing that
            the guide draws from it. Same bound, less noise.

    Raises:
        ValueError: ``num_particles`` is not a positive integer.

    Example:
        >>> from ppl_vi import ELBO, LeaveOneOut, ScoreFunction
        >>> ELBO(num_particles=16, estimators={"z": ScoreFunction(LeaveOneOut())}).num_particles
        16

    Source: Jordan et al. (1999); Blei, Kucukelbir and McAuliffe (2017).
    """

    num_particles: int = 8
    estimators: Estimators = "auto"
    analytic: bool = True

    def __post_init__(self) -> None:
        check_count("num_particles", self.num_particles)


@dataclass(frozen=True)
class ReparameterizedELBO(EvidenceLowerBound):
    """The ELBO with the pathwise gradient at every site.

    Args:
        num_particles: S, draws from the guide in each estimate.

    Raises:
        GuideError: when it meets a site without a reparameterized draw.

    Example:
        >>> from ppl_vi import ReparameterizedELBO
        >>> objective = ReparameterizedELBO(num_particles=4)

    Source: Kingma and Welling (2014).
    """

    num_particles: int = 8
    estimators: Estimators = field(init=False, default_factory=Pathwise)

    def __post_init__(self) -> None:
        check_count("num_particles", self.num_particles)


@dataclass(frozen=True)
class ScoreFunctionELBO(EvidenceLowerBound):
    """The ELBO with the score-function gradient at every site: black-box variational inference.

    Args:
        num_particles: S, draws from the guide in each estimate.
        baseline: subtracted from each site's credit; ``None`` for nothing.

    Raises:
        GuideError: when it meets a site that the score function cannot serve.

    Example:
        >>> from ppl_vi import ScoreFunctionELBO
        >>> objective = ScoreFunctionELBO(num_particles=32)

    Source: Ranganath, Gerrish and Blei (2014).
    """

    num_particles: int = 16
    baseline: Baseline | None = field(default_factory=LeaveOneOut)
    estimators: Estimators = field(init=False)

    def __post_init__(self) -> None:
        check_count("num_particles", self.num_particles)
        object.__setattr__(self, "estimators", ScoreFunction(self.baseline))
