"""Doubly reparameterized gradients of power-mean bounds.

With c_k = d bound / d log w_k, the gradient in the guide's parameters φ is
Σ_k c_k (d log w_k / dz_k · dz_k/dφ - score_k). Taking the score's part by the pathwise gradient once
more leaves Σ_k (c_k - dc_k / d log w_k) d log w_k / dz_k · dz_k/dφ, where for the order r and
normalised weights v_k

    c_k - dc_k / d log w_k = c_k (1 - r (1 - v_k)),

so that v_k² weighs the importance-weighted bound (r = 1), and r = 0 is sticking the landing.

Source: Tucker et al. (2019); Bauer and Mnih (2021).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.estimators import Pathwise
from ppl_vi.planning import Choices, Plan
from ppl_vi.program import Factor, Pair, Run, run, run_guide
from ppl_vi.surrogate import Bound, OnGrid


class PowerMean(Bound, Choices, Protocol):
    """A bound that is a power mean of weights."""

    @property
    def order(self) -> float: ...

    def plan(self, pair: Pair) -> Plan: ...

    def weights(self, log_w: Tensor) -> Tensor: ...


def doubly_reparameterized(objective: PowerMean, pair: Pair) -> tuple[Tensor, Tensor]:
    """The bound's value and the surrogate with the doubly reparameterized gradient.

    The program runs on draws that are cut off from the guide's parameters; what the bound owes to
    each draw is then weighed, and led on into the parameters by the draws themselves.

    Raises:
        GuideError: a site is not pathwise, or the guide can't run all particles at once.
    """
    plan = objective.plan(pair)
    structure, count = plan.structure, plan.grid.size
    drawn: dict[str, Tensor] = {}

    def draw(name: str, distribution: Any) -> Tensor:
        value: Tensor = distribution.rsample()
        drawn[name] = value.detach().requires_grad_(not structure.sites[name].fixed)
        return value

    def replay(name: str, distribution: Any) -> Tensor:
        # A Delta is the guide's own function of the draws and its parameters.
        found: Tensor = distribution.rsample() if structure.sites[name].fixed else drawn[name]
        return found

    attached = run_guide(structure, pair, draw, count)
    rows = structure.row_numbers(attached.values)
    with torch.enable_grad():
        made = run(structure, pair, replay, count, rows)
        whole = OnGrid(objective, made, plan)
        names = [name for name in plan.estimators if not structure.sites[name].fixed]
        leaves = [drawn[name] for name in names]
        owed = (
            torch.autograd.grad(whole.bound, leaves, retain_graph=True, materialize_grads=True)
            if leaves
            else ()
        )
    total = OnGrid(objective, _without_scores(made, names), plan).bound
    multiplier = 1 - objective.order * (1 - objective.weights(whole.log_w.detach()))
    for name, gradient in zip(names, owed, strict=True):
        latent = attached.latents[name]
        if latent.batched is not None:
            events = latent.value.dim() - latent.log_q.dim()
            placed = latent.batched.place(gradient, events)
            sizes = dict(zip(plan.shared, multiplier.shape[1:], strict=True))
            shape = [sizes.get(plate, 1) for plate in latent.plates] + [1] * events
            weight = multiplier.reshape(count, *shape)
            total = total + (weight * placed * latent.value).sum()
    return whole.bound.detach(), total


def _without_scores(made: Run, names: list[str]) -> Run:
    """The run with log q of the named sites held fixed: what is left is direct dependence."""

    def held(factor: Factor) -> Factor:
        if factor.origin == "model" or factor.sites[0] not in names:
            return factor
        return replace(factor, log_prob=factor.log_prob.detach())

    return replace(made, factors=tuple(held(factor) for factor in made.factors))


def check_pathwise(plan: Plan) -> None:
    """Raise a GuideError unless every site's draws can be led on into the guide's parameters."""
    for name, estimator in plan.estimators.items():
        if not isinstance(estimator, Pathwise):
            raise GuideError(
                f"site '{name}': doubly_reparameterized needs pathwise draws, and this site uses "
                f"{estimator!r}. Leave doubly_reparameterized off."
            )
    if plan.structure.guide_particles != "plate":
        raise GuideError(
            "doubly_reparameterized needs a guide that runs all particles at once, and this one gives "
            "another result as a batch. Leave doubly_reparameterized off."
        )
