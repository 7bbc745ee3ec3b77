"""Where a bound and the estimators of its sites meet.

surrogate = bound(log_w) + Σ_sites term(draws, credit), with

    credit = drop(log_w, log_w - downstream + baseline(downstream)),

the drop of the bound when a draw's downstream log-weight falls to what the baseline foretells. For a
linear bound this equals drop(downstream, baseline), without the cancellation of two large numbers.
The gradient of the surrogate estimates that of the expected bound.

Where sites are enumerated or draws carry weights, a factor counts with the weights of the sites that
it depends on: E_q[f] = Σ_states Π_sites weight · f. Only a linear bound may be split so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vi.drawing import naming
from ppl_vi.estimators import Draws, Given
from ppl_vi.planning import Plan
from ppl_vi.program import Factor, FactorKey, Run, align, key
from ppl_vi.states import SiteState

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class BoundOfWeights(Protocol):
    """Log-weights in, a bound out."""

    def bound(self, log_w: Tensor) -> Tensor: ...


class Bound(BoundOfWeights, Protocol):
    """The part of an objective that the surrogate needs; it sees no sites."""

    @property
    def linear(self) -> bool: ...

    def drop(self, log_w: Tensor, new: Tensor) -> Tensor: ...

    def share(self, log_w: Tensor) -> Tensor: ...


def surrogate(
    objective: Bound,
    run: Run,
    plan: Plan,
    states: Mapping[str, SiteState],
    arguments: Arguments = ((), {}),
) -> tuple[Tensor, Tensor]:
    """The bound of a run and the surrogate whose gradient is the bound's.

    Args:
        objective: gives ``bound``, ``drop`` and ``share``.
        run: the factors and latents of a batch of particles.
        plan: the estimators, and how the particles are laid out.
        states: what estimators and baselines keep from step to step, by site.
        arguments: of model and guide, for baselines.

    Returns:
        Two scalars, to be maximised: the bound's value and the surrogate.
    """
    made = OnGrid(objective, run, plan)
    total = made.bound
    for name, estimator in plan.estimators.items():
        if estimator.uses_credit:
            total = total + made.term(objective, name, states.get(name, SiteState()), arguments)
    return made.bound.detach(), total


class OnGrid:
    """One run on its grid, factors weighted and ready to be summed.

    Attributes:
        log_w: ``[num_particles, *shared plates]``, the log-weights that the bound is taken of.
        bound: the bound's value, a scalar with the gradient of the factors.
    """

    def __init__(self, objective: BoundOfWeights, run: Run, plan: Plan) -> None:
        self.run, self.plan = run, plan
        self.factors = {key(factor): self._weighted(factor) for factor in run.factors}
        self.plates = {key(factor): factor.plates for factor in run.factors}
        varying = [k for k in self.factors if k not in plan.constant]
        self.log_w = self.summed(varying, plan.shared)[:, 0].sum(1)
        bound = plan.outside * objective.bound(self.log_w).sum()
        if plan.constant:
            bound = bound + plan.outside * self.summed(plan.constant, ())[:, 0].mean()
        self.bound = bound

    def _weighted(self, factor: Factor) -> Tensor:
        """``[particles of the run, *plates]``: what it adds, N / B outside left out."""
        signed = factor.signed if self.plan.outside == 1 else factor.signed / self.plan.outside
        weight = self._weight(factor)
        if weight is None:
            return signed
        return weight * torch.where(weight > 0, signed, 0.0)  # 0 · -inf would be NaN

    def _weight(self, factor: Factor) -> Tensor | None:
        """How much each state of the factor counts; ``None`` where there is but one, of weight 1."""
        plan, grid = self.plan, self.plan.grid
        weighted = [n for n, e in plan.estimators.items() if e.weighted]
        if not weighted or plan.dependencies is None:
            return None
        reaching = [n for n in weighted if key(factor) in plan.dependencies.downstream[n]]
        free = set(grid.axis_of.values()) - {grid.axis_of[n] for n in reaching if n in grid.axis_of}
        first = grid.first_on(frozenset(free)).repeat(grid.size // prod(grid.axes))
        weight = first.to(factor.log_prob).reshape(-1, *(1,) * len(factor.plates))
        for name in reaching:
            latent = self.run.latents[name]
            log_weight = plan.estimators[name].log_weight(latent)
            # Where the program mixes a plate, all its elements' draws count for each of them.
            mixed = plan.dependencies.mixed.get(name, frozenset())
            kept = [p for p in factor.plates if p not in mixed]
            log_weight = align(log_weight, latent.plates, kept)
            weight = weight * align(log_weight, kept, factor.plates).exp()
        return weight

    def summed(self, factors: Iterable[FactorKey], plates: tuple[str, ...]) -> Tensor:
        """``[num_particles, replicas, states, *plates]`` of the sum of weighted factors."""
        aligned = [align(self.factors[name], self.plates[name], plates) for name in factors]
        size = self.plan.grid.size
        nothing = self.run.factors[0].log_prob.new_zeros(size, *(1,) * len(plates))
        total: Tensor = sum(aligned[1:], start=aligned[0]) if aligned else nothing
        return total.reshape(*self.plan.grid.shape, *total.shape[1:])

    def term(self, objective: Bound, name: str, state: SiteState, arguments: Arguments) -> Tensor:
        """The site's addend to the surrogate."""
        plan, estimator = self.plan, self.plan.estimators[name]
        replicas = (0, *plan.grid.replicas.get(name, ()))
        draws = Draws(name, self.run.latents[name], plan.grid.shape, replicas)
        given = Given(draws, state.baseline, *arguments)
        with torch.no_grad():
            downstream = self._downstream(name, replicas)
            baseline = estimator.subtracted
            # Baselines see the log-weight of one row, so that batches of other sizes are alike.
            rows = plan.scale_of(p for p in draws.latent.plates if p not in plan.shared)
            own = downstream[:, 0] / rows
            with naming(name, baseline):
                foretold = None if baseline is None else rows * baseline(own, given)
            credit = self._credit(objective, name, downstream, foretold)
        with naming(name, estimator):
            term = estimator.term(draws, plan.outside * credit, state.estimator)
        if baseline is not None and torch.is_grad_enabled():
            with naming(name, baseline):
                baseline.update(own, given)
        return term

    def _downstream(self, name: str, replicas: tuple[int, ...]) -> Tensor:
        """``[num_particles, replicas, states, *plates]``: the log-weight that depends on a draw."""
        dependencies, latent = self.plan.dependencies, self.run.latents[name]
        if dependencies is None:
            raise ValueError(f"site '{name}': what its draws reach was never found out.")
        kept = dependencies.credit_plates(name, self.run)
        reached = [k for k in self.factors if k in dependencies.downstream[name]]
        total = self.summed(reached, kept)[:, list(replicas)]
        return self._spread(total, kept, latent.plates)

    def _credit(
        self, objective: Bound, name: str, downstream: Tensor, foretold: Tensor | None
    ) -> Tensor:
        """``[num_particles, replicas, states, *plates]``: how much of the bound a draw answers for.

        Replicas are counted from the draw itself.
        """
        own, others = downstream[:, :1], downstream[:, 1:]
        before = None if foretold is None else foretold.unsqueeze(1)
        parts = [self._credit_of_draws(objective, name, own, before).expand_as(own)]
        if others.shape[1]:
            if objective.linear:
                parts.append(objective.drop(others, own))
            else:
                parts.append(-objective.drop(self._whole(name), self._left(name, own) + others))
        return torch.cat(parts, 1)

    def _credit_of_draws(
        self, objective: Bound, name: str, own: Tensor, foretold: Tensor | None
    ) -> Tensor:
        if objective.linear:
            return objective.drop(own, torch.zeros_like(own) if foretold is None else foretold)
        log_w = self._whole(name)
        share = objective.share(log_w).expand_as(own)
        if foretold is None:
            return share
        # What is foretold knows nothing of the draw, and so does the choice to leave it out.
        possible = torch.isfinite(foretold)
        new = self._left(name, own) + torch.where(possible, foretold, 0.0)
        return torch.where(possible, objective.drop(log_w, new), share)

    def _whole(self, name: str) -> Tensor:
        """``[num_particles, 1, 1, *plates]``: the log-weights, laid out for the site's credit."""
        log_w = self.log_w.unsqueeze(1).unsqueeze(1)
        return self._spread(log_w, self.plan.shared, self.run.latents[name].plates)

    def _left(self, name: str, own: Tensor) -> Tensor:
        """``[num_particles, 1, 1, *plates]``: the log-weights without what is downstream of a draw.

        It is summed up, not subtracted: a draw that is impossible leaves what the others weigh.
        """
        plan, plates = self.plan, self.run.latents[name].plates
        reached = frozenset() if plan.dependencies is None else plan.dependencies.downstream[name]
        rest = [k for k in self.factors if k not in reached and k not in plan.constant]
        total = self._spread(self.summed(rest, plan.shared)[:, :1], plan.shared, plates)
        inside = [3 + i for i, plate in enumerate(plates) if plate not in plan.shared]
        impossible = own == -math.inf
        finite = torch.where(impossible, 0.0, own)
        if not inside:
            return total.expand_as(own)
        others = finite.sum(inside, keepdim=True) - finite
        count = impossible.sum(inside, keepdim=True) - impossible.long()
        return torch.where(count > 0, -math.inf, total + others)

    def _spread(self, tensor: Tensor, plates: tuple[str, ...], target: tuple[str, ...]) -> Tensor:
        """Give a ``[num_particles, replicas, states, *plates]`` tensor the target's plates, of size 1.

        A plate that the program mixes was summed; every element answers for the whole.
        """
        sizes = dict(zip(plates, tensor.shape[3:], strict=True))
        return tensor.reshape(*tensor.shape[:3], *(sizes.get(plate, 1) for plate in target))
