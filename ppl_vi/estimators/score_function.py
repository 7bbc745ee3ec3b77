"""The score-function (log-derivative, REINFORCE) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Baseline, Estimator
from ppl_vi.estimators.draws import Draws
from ppl_vi.estimators.grid import Place
from ppl_vi.program import Site


@dataclass(frozen=True, repr=False)
class ScoreFunction(Estimator):
    """Weigh the score by the credit: d/dλ E_q[f(z)] = E[(f(z) - b) · d log q(z)/dλ].

    The credit is Rao-Blackwellized: only factors downstream of the site count, within the site's
    plates. Unbiased with any baseline b that does not see the draw; noisy without one.

    Args:
        baseline: what to subtract from the credit; ``None`` for nothing.

    Raises:
        GuideError: the site is a Delta, or a trainable parameter moves its support, where the score
            misses part of the gradient.

    Example:
        >>> from ppl_vi import ELBO, LeaveOneOut, ScoreFunction
        >>> objective = ELBO(num_particles=16, estimators={"z": ScoreFunction(LeaveOneOut())})

    Source: Ranganath, Gerrish and Blei (2014).
    """

    baseline: Baseline | None = None
    uses_credit: ClassVar[bool] = True

    @property
    def needs_batch(self) -> bool:  # type: ignore[override]
        return self.baseline is not None and self.baseline.needs_batch

    @property
    def subtracted(self) -> Baseline | None:
        return self.baseline

    def check(self, site: Site, num_particles: int) -> None:
        check_has_score(site, type(self).__name__)
        check_baseline(site, self.baseline, num_particles)

    def draw(self, distribution: Any, place: Place) -> Tensor:
        return detached_draw(distribution)

    def term(self, draws: Draws, credit: Tensor, state: nn.Module | None) -> Tensor:
        return (draws.log_q * credit).sum()


def check_baseline(site: Site, baseline: Any, num_particles: int) -> None:
    """Raise a GuideError unless there is no baseline, or one that can serve the site."""
    if baseline is None:
        return
    if not isinstance(baseline, Baseline):
        raise GuideError(
            f"site '{site.name}': the baseline must be a Baseline such as LeaveOneOut(), not "
            f"{baseline!r}."
        )
    baseline.check(site, num_particles)


def check_has_score(site: Site, estimator: str) -> None:
    """Raise a GuideError where the score of the site's draws does not give the whole gradient."""
    if site.fixed:
        raise GuideError(
            f"site '{site.name}': {estimator} needs a random draw, but the guide's distribution "
            f"is a Delta. Use Pathwise() for this site."
        )
    if site.moving_support:
        raise GuideError(
            f"site '{site.name}': {estimator} is wrong where a trainable parameter moves the "
            f"support of {site.distribution}. Use Pathwise(), or fix that parameter."
        )


def detached_draw(distribution: Any) -> Tensor:
    """A draw that no gradient passes through."""
    with torch.no_grad():
        # The clone defeats the caches of transforms, which would hide the score's gradient.
        value: Tensor = distribution.sample().clone()
    return value
