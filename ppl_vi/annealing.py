"""Weights of the KL terms: a schedule for each latent, the same on log p and log q.

With a weight β_j(step) for each latent z_j, the steps climb

    E_q[Σ_observed log p(x | z) + Σ_j β_j (log p(z_j | ...) - log q(z_j | ...))],

which is the ELBO where all weights are 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from ppl_vi.drawing import draw_with
from ppl_vi.errors import GuideError
from ppl_vi.estimators import Estimators
from ppl_vi.job import Job
from ppl_vi.objectives import Objective
from ppl_vi.objectives.base import BoundObjective
from ppl_vi.planning import Plan
from ppl_vi.preparation import dependencies_of, prepare, structure_of
from ppl_vi.program import Dependencies, Factor, Pair, Run, Structure, drawn_together
from ppl_vi.scheduling import Scheduled
from ppl_vi.states import States, states_of
from ppl_vi.surrogate import OnGrid, surrogate

Weight = float | Callable[[int], float]
KLSchedule = Weight | Mapping[str, Weight]
"""A weight of 0 or more, a function from the step (0, 1, ...) to one, or a dict of these by site."""


@dataclass(frozen=True, eq=False)
class Annealed(BoundObjective):
    """An objective whose gradient has weights on the KL terms; its value has none.

    The value is the objective's own, at weight 1, from the same draws.

    Args:
        objective: a function of log-weights.
        groups: sites of the guide that share a weight, column by column of the schedule.
        scheduled: the weights of each step.
    """

    objective: BoundObjective
    groups: tuple[frozenset[str], ...]
    scheduled: Scheduled

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return self.objective.linear

    @property
    def analytic(self) -> bool:  # type: ignore[override]
        return self.objective.analytic

    @property
    def num_draws(self) -> int:
        return self.objective.num_draws

    @property
    def estimators(self) -> Estimators:  # type: ignore[override]
        return self.objective.estimators

    def bound(self, log_w: Tensor) -> Tensor:
        return self.objective.bound(log_w)

    def drop(self, log_w: Tensor, new: Tensor) -> Tensor:
        return self.objective.drop(log_w, new)

    def share(self, log_w: Tensor) -> Tensor:
        return self.objective.share(log_w)

    def plan(self, pair: Pair) -> Plan:
        return self.objective.plan(pair)

    def states(self, pair: Pair) -> States:
        return self.objective.states(pair)

    def estimate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        plan = prepare(self.objective, pair)
        states = states_of(self.objective, pair, plan.structure, plan.estimators)
        made = draw_with(plan, pair)
        with torch.no_grad():
            bound = OnGrid(self.objective, made, plan).bound
        weighted = self._weighted(made)
        arguments = pair.args, pair.kwargs
        return bound, surrogate(self.objective, weighted, plan, states, arguments)[1]

    def _weighted(self, made: Run) -> Run:
        """The run with log p and log q of each latent counted by its weight."""
        weights = dict(zip(self.groups, self.scheduled.current.unbind(), strict=True))

        def weighed(factor: Factor) -> Factor:
            own = [w for group, w in weights.items() if not group.isdisjoint(factor.sites)]
            return replace(factor, scale=own[0] * factor.scale) if own else factor

        return replace(made, factors=tuple(map(weighed, made.factors)))


def annealed(
    objective: pyro.infer.ELBO, schedule: KLSchedule | None, job: Job, steps: int
) -> pyro.infer.ELBO:
    """The objective with a schedule of KL weights; itself where there is none.

    Args:
        objective: of the fit.
        schedule: ``fit(kl_schedule=...)``.
        job: model, guide and data.
        steps: how many are planned; the schedule is asked for each of them beforehand.

    Raises:
        ValueError: a weight is negative or not finite.
        GuideError: a site is unknown, has no KL term of its own, or the objective has none.
    """
    if schedule is None or schedule == {}:
        return objective
    _check_objective(objective)
    batch = next(job.source.sequence())
    with job.handler(batch):
        pair = job.pair(batch)
        structure = structure_of(pair)
        dependencies = dependencies_of(structure, pair, ())
    if isinstance(schedule, Mapping):
        _check_names(schedule, structure)
        columns = {name: _column(weight, steps) for name, weight in schedule.items()}
        together = drawn_together(structure, dependencies)
        chosen = _by_group(columns, together, structure.of_kind("latent"))
    else:
        chosen = {frozenset(structure.drawn): _column(schedule, steps)}
    _check_factors(chosen, structure, dependencies)
    table = torch.tensor(list(chosen.values()), dtype=torch.float64).reshape(-1, steps)
    table = table.T.contiguous()
    scheduled = Scheduled(table, table[0].clone())
    return Annealed(objective, tuple(chosen), scheduled)


def _check_objective(objective: Any) -> None:
    if isinstance(objective, Objective) and objective.takes_kl_weights:
        return
    own = isinstance(objective, Objective)
    name = repr(objective) if own else f"pyro.infer.{type(objective).__name__}"
    raise GuideError(
        f"kl_schedule weighs log p and log q in a bound of log-weights, and {name} has no place for "
        f"such weights. Use ppl_vi.ELBO(), or leave kl_schedule out."
    )


def _check_names(schedule: Mapping[str, Weight], structure: Structure) -> None:
    latents = structure.of_kind("latent")
    for name in schedule:
        if name in structure.marginalized:
            raise GuideError(
                f"site '{name}' (kl_schedule) is summed out, so that it has no KL term. Leave it out "
                f"of kl_schedule, or draw it in the guide."
            )
        if name not in latents:
            known = ", ".join(f"'{latent}'" for latent in latents)
            raise GuideError(
                f"site '{name}' (kl_schedule) is no latent that the guide draws. Use names among "
                f"{known}."
            )


def _check_factors(
    groups: Iterable[frozenset[str]], structure: Structure, dependencies: Dependencies
) -> None:
    """Raise a GuideError where summing a discrete site out ties log p of a latent to other factors."""
    for _, sites in dependencies.plates:
        own = set(sites) - set(structure.marginalized)
        for group in groups:
            if own & group and own - group:
                latent, other = min(own & group), min(own - group)
                raise GuideError(
                    f"site '{latent}' (kl_schedule): a discrete site that is summed out joins its "
                    f"log p to that of site '{other}'. Draw the discrete site in the guide, or leave "
                    f"kl_schedule out."
                )


def _by_group(
    columns: Mapping[str, list[float]],
    together: Iterable[frozenset[str]],
    latents: Sequence[str],
) -> dict[frozenset[str], list[float]]:
    """The weights of groups of sites of the guide, by step; groups without a schedule are left out."""
    chosen: dict[frozenset[str], list[float]] = {}
    for group in together:
        members = [name for name in latents if name in group]
        named = [name for name in members if name in columns]
        if not named:
            continue
        if any(columns.get(name) != columns[named[0]] for name in members):
            names = ", ".join(f"'{name}'" for name in members)
            raise GuideError(
                f"sites {names} are drawn together by the guide, so that kl_schedule cannot weigh "
                f"one of them alone. Give all of them the same weight, or use guide='normal'."
            )
        chosen[group] = columns[named[0]]
    return chosen


def _column(weight: Weight, steps: int) -> list[float]:
    """The weight of each step."""
    values = [weight(step) if callable(weight) else weight for step in range(steps)]
    return [_checked(value, step) for step, value in enumerate(values)]


def _checked(value: Any, step: int) -> float:
    try:
        number = math.nan if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"kl_schedule gives the weight {value!r} at step {step}. Give a number that is 0 or more, "
            f"a function from the step to one, or a dict of these by site."
        )
    return number


__all__ = ["Annealed", "KLSchedule", "annealed"]
