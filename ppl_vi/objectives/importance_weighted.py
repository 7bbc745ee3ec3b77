"""Bounds from the power mean of K importance weights: importance-weighted ELBO and Rényi's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.doubly_reparameterized import check_pathwise, doubly_reparameterized
from ppl_vi.estimators import Estimators
from ppl_vi.objectives.base import BoundObjective
from ppl_vi.planning import Plan
from ppl_vi.program import Pair


class PowerMeanBound(BoundObjective, ABC):
    """(1/r) log (1/K) Σ_k w_k^r, averaged over independent groups of K particles."""

    K: int
    doubly_reparameterized: bool

    @property
    @abstractmethod
    def order(self) -> float:
        """The power r that the weights are raised to."""

    @property
    def num_draws(self) -> int:
        return self.num_particles * self.K

    @property
    def takes_kl_weights(self) -> bool:  # type: ignore[override]
        return not self.doubly_reparameterized  # its identity is that of unweighted scores

    def bound(self, log_w: Tensor) -> Tensor:
        return self._of_groups(log_w).mean(0)

    def drop(self, log_w: Tensor, new: Tensor) -> Tensor:
        grouped, replaced = self._grouped(log_w), self._grouped(new)
        others = _logsumexp_of_others(self.order * grouped)
        with_new = torch.logaddexp(others, self.order * replaced)
        before = torch.logsumexp(self.order * grouped, 1, keepdim=True)
        fall = (before - with_new) / (self.order * self.num_particles)
        return fall.reshape(self.num_draws, *fall.shape[2:])

    def share(self, log_w: Tensor) -> Tensor:
        each = self._of_groups(log_w) / self.num_particles
        return each.repeat_interleave(self.K, 0)

    def weights(self, log_w: Tensor) -> Tensor:
        """``[num_draws, ...]``: the normalised weights, how the bound changes with each log-weight.

        They sum to 1 over a group.
        """
        return (self.order * self._grouped(log_w)).softmax(1).reshape(log_w.shape)

    def plan(self, pair: Pair) -> Plan:
        plan = super().plan(pair)
        if self.doubly_reparameterized:
            check_pathwise(plan)
        return plan

    def estimate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        if self.doubly_reparameterized:
            return doubly_reparameterized(self, pair)
        return super().estimate(pair)

    def _of_groups(self, log_w: Tensor) -> Tensor:
        grouped = self._grouped(log_w)
        mean = torch.logsumexp(self.order * grouped, 1) - math.log(self.K)
        return mean / self.order

    def _grouped(self, tensor: Tensor) -> Tensor:
        """``[num_particles, K, ...]``."""
        return tensor.reshape(self.num_particles, self.K, *tensor.shape[1:])


def _logsumexp_of_others(values: Tensor) -> Tensor:
    """``[groups, K, ...]``: log Σ_{j≠k} exp(values_j), from sums on both sides: none cancels."""
    nothing = torch.full_like(values[:, :1], -math.inf)
    before = torch.cat([nothing, values[:, :-1]], 1).logcumsumexp(1)
    after = torch.cat([values[:, 1:], nothing], 1).flip(1).logcumsumexp(1).flip(1)
    return torch.logaddexp(before, after)


@dataclass(frozen=True)
class ImportanceWeightedELBO(PowerMeanBound):
    """The importance-weighted bound, E[log (1/K) Σ_k p(x, z_k)/q(z_k)] <= log p(x).

    K = 1 is the ELBO; the bound rises to the log evidence with K. It is taken within the plates that
    all factors with latents have in common, row by row for a model with latents of its rows alone.
    Gradients of pathwise sites are exact for the K-sample bound, and discrete sites have the credit of
    VIMCO, counted downstream and within plates. The guide's gradient gets noisier as K grows, unless
    it is doubly reparameterized.

    Args:
        K: particles in each bound.
        num_particles: independent bounds that an estimate averages.
        estimators: one estimator for every site, a dict by site, or ``"auto"``. Baselines compare all
            ``num_particles * K`` draws.
        doubly_reparameterized: replace the score that is left in the pathwise gradient by its own
            pathwise form; all sites must be pathwise.

    Raises:
        ValueError: ``K`` or ``num_particles`` is not a positive integer.
        GuideError: an estimator asks for a mean of log-weights, or a subsampled plate would stand
            inside the logarithm.

    Example:
        >>> from ppl_vi import ImportanceWeightedELBO
        >>> ImportanceWeightedELBO(K=5).num_draws
        40

    Source: Burda, Grosse and Salakhutdinov (2016); Mnih and Rezende (2016), VIMCO; Tucker et al.
    (2019), doubly reparameterized gradients.
    """

    K: int
    num_particles: int = 8
    estimators: Estimators = "auto"
    doubly_reparameterized: bool = False

    def __post_init__(self) -> None:
        check_count("K", self.K)
        check_count("num_particles", self.num_particles)

    @property
    def order(self) -> float:
        return 1.0


@dataclass(frozen=True)
class RenyiELBO(PowerMeanBound):
    """Rényi's bound, E[1/(1 - α) · log (1/K) Σ_k (p(x, z_k)/q(z_k))^(1 - α)].

    α = 0 is the importance-weighted bound, α → 1 the ELBO; a negative α leans to the largest
    weights. The gradient is that of this K-sample bound, for discrete sites too. As an estimate of
    the divergence itself it is biased at any finite K.

    Args:
        alpha: the order of the divergence, not 1.
        K: particles in each bound.
        num_particles: independent bounds that an estimate averages.
        estimators: one estimator for every site, a dict by site, or ``"auto"``.
        doubly_reparameterized: as for the importance-weighted bound.

    Raises:
        ValueError: ``alpha`` is 1 or not finite, or ``K`` or ``num_particles`` not a positive integer.
        GuideError: as for the importance-weighted bound.

    Example:
        >>> from ppl_vi import RenyiELBO
        >>> objective = RenyiELBO(alpha=0.5, K=8)

    Source: Li and Turner (2016); Bauer and Mnih (2021) for its doubly reparameterized gradient.
    """

    alpha: float
    K: int = 8
    num_particles: int = 8
    estimators: Estimators = "auto"
    doubly_reparameterized: bool = False

    def __post_init__(self) -> None:
        check_count("K", self.K)
        check_count("num_particles", self.num_particles)
        alpha: Any = self.alpha
        if not isinstance(alpha, Real) or not math.isfinite(alpha) or alpha == 1:
            raise ValueError(
                f"alpha must be a finite number other than 1 (use ELBO()), not {self.alpha!r}."
            )

    @property
    def order(self) -> float:
        return 1.0 - self.alpha
