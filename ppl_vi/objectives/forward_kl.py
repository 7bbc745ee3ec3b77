"""The wake phase: the divergence from the posterior to the guide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.errors import GuideError
from ppl_vi.estimators import Estimators, detached_draw, named_estimators
from ppl_vi.objectives.base import Objective
from ppl_vi.planning import Plan
from ppl_vi.program import Pair, run
from ppl_vi.surrogate import OnGrid


@dataclass(frozen=True)
class ForwardKL(Objective):
    """Minus the forward divergence, -KL(p(z|x) || q(z)), by self-normalised importance weights.

    With weights v_k proportional to p(x, z_k)/q(z_k) among K draws from q, held fixed, the gradient is

        E[Σ_k v_k · d/dφ log q(z_k)]  in the guide, and  E[Σ_k v_k · d/dθ log p(x, z_k)]  in the model.

    It covers the posterior where the ELBO would leave a mode out, and serves every site, discrete or
    not, without a score-function or pathwise gradient. Biased for any finite K, less with larger K:
    it is the gradient at the K-sample weights' expectation. The value is
    log (1/K) Σ w_k - Σ v_k log w_k, biased likewise.

    Args:
        K: draws that each set of weights is normalised over, at least 2.
        num_particles: independent sets that an estimate averages.
        estimators: ``"auto"``; draws carry no gradient here, so there is nothing to choose.

    Raises:
        ValueError: ``K`` is not an integer of 2 or more, or ``num_particles`` not a positive one.
        GuideError: an estimator is named, or a subsampled plate would stand inside the weights.

    Example:
        >>> from ppl_vi import ForwardKL
        >>> objective = ForwardKL(K=32)

    Source: Bornschein and Bengio (2015), reweighted wake-sleep; Le et al. (2020).
    """

    K: int = 16
    num_particles: int = 8
    estimators: Estimators = "auto"

    def __post_init__(self) -> None:
        check_count("K", self.K)
        check_count("num_particles", self.num_particles)
        if self.K < 2:
            raise ValueError("K must be 2 or more: a single draw's weight is always 1.")

    @property
    def num_draws(self) -> int:
        return self.num_particles * self.K

    def plan(self, pair: Pair) -> Plan:
        plan = super().plan(pair)
        for name, estimator in named_estimators(plan.structure, self.estimators).items():
            raise GuideError(
                f"site '{name}': ForwardKL weighs the score of every draw by itself and has no place "
                f"for {type(estimator).__name__}. Leave estimators at 'auto'."
            )
        return plan

    def described(self, plan: Plan) -> dict[str, str]:
        return dict.fromkeys(plan.estimators, "self-normalised weights")

    def estimate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        plan = self.plan(pair)

        def draw(name: str, distribution: Any) -> Tensor:
            fixed = plan.structure.sites[name].fixed
            return distribution() if fixed else detached_draw(distribution)

        made = run(plan.structure, pair, draw, plan.grid.size)
        grid = OnGrid(self, made, plan)
        grouped = grid.log_w.reshape(self.num_particles, self.K, *grid.log_w.shape[1:])
        weights = (grouped.softmax(1).reshape(grid.log_w.shape) / self.num_particles).detach()
        # Factors of the guide come with the sign that they have in a log-weight.
        reached = [name for name in grid.factors if name not in plan.constant]
        log_p = grid.summed([n for n in reached if n[0] == "model"], plan.shared)
        log_q = -grid.summed([n for n in reached if n[0] == "guide"], plan.shared)
        total = plan.outside * (weights * (log_p + log_q)[:, 0, 0]).sum()
        total = total + plan.outside * grid.summed(plan.constant, ())[:, 0].mean()
        return grid.bound.detach(), total

    def bound(self, log_w: Tensor) -> Tensor:
        grouped = log_w.reshape(self.num_particles, self.K, *log_w.shape[1:])
        evidence = torch.logsumexp(grouped, 1) - math.log(self.K)
        return (evidence - (grouped.softmax(1) * grouped).sum(1)).mean(0)
