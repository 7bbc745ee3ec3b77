"""Draws from another distribution than the guide's, reweighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator
from ppl_vi.estimators.grid import Place
from ppl_vi.estimators.score_function import check_has_score
from ppl_vi.program import Latent, Site, innermost

_TRIED = 50

Proposal = Callable[[Any], Any] | Distribution
"""A distribution, or a function from the guide's distribution to one."""


@dataclass(frozen=True, repr=False)
class ImportanceSampled(Estimator):
    """Draw from a proposal r and weigh by q/r: d/dλ E_q[f] = E_r[(q(z)/r(z)) f(z) · d log q(z)/dλ].

    A proposal wider than q sees more of where the score is large. Weights are plain, so that bound
    and gradient are unbiased; they are noisy where r is small and q is not.

    Args:
        proposal: a distribution, or a function from the guide's own distribution (without
            ``.expand()`` and ``.to_event()``) to one with the same support and shape. No gradient
            passes through it.

    Raises:
        GuideError: the site is a Delta, a parameter moves its support, the proposal is neither a
            distribution nor a function, or the bound is not a mean of log-weights.

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_vi import ELBO, ImportanceSampled
        >>> wider = ImportanceSampled(lambda q: dist.Normal(q.loc, 1.5 * q.scale))
        >>> objective = ELBO(num_particles=16, estimators={"z": wider})

    Source: Ruiz, Titsias and Blei (2016), overdispersed black-box variational inference.
    """

    proposal: Proposal
    uses_credit: ClassVar[bool] = False
    linear_only: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    def check(self, site: Site, num_particles: int) -> None:
        check_has_score(site, type(self).__name__)
        if not callable(self.proposal) and not isinstance(self.proposal, Distribution):
            raise GuideError(
                f"site '{site.name}': ImportanceSampled needs a proposal distribution, or a function "
                f"from the guide's distribution to one, not {self.proposal!r}."
            )

    def draw(self, distribution: Any, place: Place) -> Tensor:
        with torch.no_grad():
            value: Tensor = self._proposed(distribution).sample()
        return value

    def probe(self, latent: Latent) -> None:
        batched = latent.batched
        if batched is None:
            return
        q = batched.distribution
        r = self._proposed(q)
        if r.event_shape != q.event_shape or r.support.is_discrete != q.support.is_discrete:
            raise ValueError(
                f"{type(innermost(r)).__name__} has not the kind or shape of its draws"
            )
        wide = [q.sample() for _ in range(_TRIED)]
        if not all(torch.isfinite(r.log_prob(value)).all() for value in wide):
            raise ValueError("the proposal cannot draw all that the guide's distribution can")
        if not all(q.support.check(r.sample()).all() for _ in range(_TRIED)):
            raise ValueError("the proposal draws values outside the support")

    def log_weight(self, latent: Latent) -> Tensor:
        batched = latent.batched
        if batched is None:
            raise NotImplementedError
        with torch.no_grad():
            log_r = self._proposed(batched.distribution).log_prob(batched.value)
        return latent.log_q - batched.place(log_r)

    def _proposed(self, distribution: Any) -> Any:
        """The proposal in the shape of the guide's distribution."""
        base = innermost(distribution)
        proposal = self.proposal
        found: Any = proposal if isinstance(proposal, Distribution) else proposal(base)
        if not isinstance(found, Distribution):
            raise TypeError(f"the proposal gives {found!r}, which is no distribution")
        elements = distribution.event_dim - base.event_dim
        shape = distribution.batch_shape + distribution.event_shape[:elements]
        lifted = found.expand(shape).to_event(elements)
        if lifted.event_shape != distribution.event_shape:
            raise ValueError(f"the proposal draws {tuple(lifted.event_shape)} for one event")
        return lifted
