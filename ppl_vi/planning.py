"""How an estimate is made: which estimator serves which site, and where particles and bounds stand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.estimators import (
    Enumerate,
    Estimator,
    Estimators,
    Grid,
    Pathwise,
    Place,
    automatic,
    named_estimators,
)
from ppl_vi.program import ClosedForm, Dependencies, FactorKey, Structure

MOST_STATES = 2**10
"""How many joint states are enumerated at most."""


class Choices(Protocol):
    """The part of an objective that decides how sites are estimated."""

    @property
    def num_draws(self) -> int: ...

    @property
    def estimators(self) -> Estimators: ...

    @property
    def linear(self) -> bool: ...

    @property
    def analytic(self) -> bool: ...


@dataclass(frozen=True)
class Plan:
    """What is decided once about the estimates of an objective on a pair.

    Attributes:
        structure: of the pair.
        estimators: by site that the guide draws.
        grid: the layout of the particles.
        dependencies: what each draw reaches; ``None`` where no one asks.
        forms: the closed forms, by site.
        shared: the plates that a bound which is no mean of log-weights is taken in, each element by
            itself; their N / B stands outside.
        constant: the factors that no draw reaches, which stand outside such a bound.
    """

    structure: Structure
    estimators: Mapping[str, Estimator]
    grid: Grid
    dependencies: Dependencies | None = None
    forms: Mapping[str, ClosedForm] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    constant: frozenset[FactorKey] = frozenset()
    places: Mapping[str, Place] = field(init=False)
    sources: Mapping[str, Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        if self.dependencies is None and any(e.uses_credit for e in self.estimators.values()):
            raise ValueError("an estimator asks for credit, but what its draws reach is not known.")
        names = self.structure.drawn
        object.__setattr__(self, "places", {name: self.grid.place(name) for name in names})
        object.__setattr__(self, "sources", {name: self._source(name) for name in names})

    def _source(self, name: str) -> Tensor | None:
        dependencies = self.dependencies
        if self.grid.trivial or dependencies is None:
            return None
        varied = {*self.grid.replicas, *self.grid.axis_of}
        follows = {site for site in varied if name in dependencies.draws_after(site)}
        return self.grid.sources(frozenset(follows), name)

    @property
    def sampled(self) -> frozenset[str]:
        """The sites that keep their sampled log q in the gradient."""
        return frozenset(name for name, estimator in self.estimators.items() if sticks(estimator))

    @property
    def outside(self) -> float:
        """N / B of the plates that the bound is taken in."""
        return self.scale_of(self.shared)

    def scale_of(self, plates: Iterable[str]) -> float:
        """N / B of the plates."""
        known = [self.structure.plates[name] for name in plates]
        return prod(plate.full_size / plate.size for plate in known)


def sticks(estimator: Estimator) -> bool:
    """Whether the estimator drops the score of its site."""
    return isinstance(estimator, Pathwise) and estimator.stick_the_landing


def make_plan(
    choices: Choices,
    structure: Structure,
    dependencies_of: Callable[[tuple[str, ...]], Dependencies],
    forms_of: Callable[[Dependencies], Mapping[str, ClosedForm]],
) -> Plan:
    """Choose, check and lay out.

    ``"auto"`` enumerates finite discrete sites as far as 1,024 joint states and the bound allow,
    takes the pathwise gradient where there is one, and the score function with a leave-one-out
    baseline elsewhere.

    Args:
        choices: the objective.
        structure: of the pair.
        dependencies_of: finds the dependencies, with the plates of the named sites looked into.
        forms_of: finds the closed forms.

    Raises:
        GuideError: an estimator refuses its site, the bound or the program.
    """
    named = named_estimators(structure, choices.estimators)
    for name, estimator in named.items():
        _check(choices, structure, name, estimator)
    candidates = [
        name
        for name in structure.drawn
        if name not in named and 1 < structure.sites[name].num_states <= MOST_STATES
    ]
    looked_into = _looked_into(choices, structure, named)
    if not looked_into and not choices.analytic and choices.linear:
        return Plan(structure, _completed(choices, structure, named), _plain(choices.num_draws))
    dependencies = dependencies_of(looked_into)
    for name, estimator in named.items():
        reason = _held_together(structure, dependencies, name)
        if estimator.takes_apart and reason:
            raise GuideError(
                f"site '{name}': {type(estimator).__name__} varies each element of a plate by itself, "
                f"but {reason}. Use ScoreFunction(LeaveOneOut()) for this site."
            )
    axes = _Axes(dependencies, structure)
    for name, estimator in named.items():
        if isinstance(estimator, Enumerate) and not axes.add(name):
            raise GuideError(
                f"site '{name}': Enumerate would make more than {MOST_STATES} joint states. Use "
                f"ScoreFunction(LeaveOneOut()) for this site."
            )
    if choices.linear and structure.guide_particles == "plate":
        for name in candidates:
            if not _held_together(structure, dependencies, name) and axes.add(name):
                named[name] = Enumerate()
    estimators = _completed(choices, structure, named)
    shared: tuple[str, ...] = ()
    constant = frozenset[FactorKey]()
    if not choices.linear:
        shared, constant = _where_the_bound_is_taken(structure, dependencies)
    grid = _grid(choices.num_draws, structure, estimators, axes)
    forms = forms_of(dependencies) if choices.analytic else {}
    return Plan(structure, estimators, grid, dependencies, forms, shared, constant)


def _looked_into(
    choices: Choices, structure: Structure, named: Mapping[str, Estimator]
) -> tuple[str, ...]:
    """The sites whose plates matter: all but pathwise ones, and with a non-linear bound these too."""

    def matters(name: str) -> bool:
        site, estimator = structure.sites[name], named.get(name)
        if site.fixed or not choices.linear:
            return not site.fixed
        if estimator is None:
            return not site.reparameterizable
        return estimator.uses_credit or estimator.takes_apart or estimator.weighted

    return tuple(name for name in structure.drawn if matters(name))


def _completed(
    choices: Choices, structure: Structure, chosen: Mapping[str, Estimator]
) -> dict[str, Estimator]:
    """The estimators of all sites, in the order of the guide."""
    completed = {}
    for name in structure.drawn:
        completed[name] = chosen.get(name) or automatic(structure.sites[name], choices.num_draws)
        if name not in chosen:
            _check(choices, structure, name, completed[name])
    return completed


def _check(choices: Choices, structure: Structure, name: str, estimator: Estimator) -> None:
    estimator.check(structure.sites[name], choices.num_draws)
    kind = type(estimator).__name__
    if sticks(estimator):
        kind = "Pathwise(stick_the_landing=True)"
    if estimator.linear_only and not choices.linear:
        instead = "Pathwise()" if structure.sites[name].reparameterizable else "ScoreFunction()"
        raise GuideError(
            f"site '{name}': {kind} is right only for a mean of log-weights, and "
            f"{type(choices).__name__} is none. Use {instead} for this site."
        )
    if estimator.needs_batch and structure.guide_particles != "plate":
        raise GuideError(
            f"site '{name}': {kind} needs all particles at once, but the guide gives another result "
            f"when it runs them as a batch. Write the guide so that it broadcasts over leading "
            f"dimensions, or use ScoreFunction(LeaveOneOut())."
        )


def _held_together(structure: Structure, dependencies: Dependencies, name: str) -> str:
    """Why the elements of a plate can't be varied each by itself; empty if they can."""
    plates = [p for p in structure.sites[name].plates if structure.plates[p].size > 1]
    for plate in plates:
        if plate in dependencies.mixed.get(name, frozenset()):
            return f"the program mixes the elements of plate '{plate}'"
        for factor in sorted(dependencies.downstream[name]):
            if plate not in dependencies.plates.get(factor, ()):
                return f"site '{factor[1][0]}' depends on all elements of plate '{plate}'"
    return ""


class _Axes:
    """The axes of an enumeration; sites without a common factor share one."""

    def __init__(self, dependencies: Dependencies, structure: Structure) -> None:
        self.sizes: list[int] = []
        self.of: dict[str, int] = {}
        self._dependencies, self._structure = dependencies, structure

    def add(self, name: str) -> bool:
        """Give the site an axis; whether the joint states are still few enough."""
        count = self._structure.sites[name].num_states
        reached = self._dependencies.downstream
        for axis, size in enumerate(self.sizes):
            others = [site for site, own in self.of.items() if own == axis]
            if size == count and all(reached[name].isdisjoint(reached[site]) for site in others):
                self.of[name] = axis
                return True
        if prod(self.sizes) * count > MOST_STATES:
            return False
        self.of[name] = len(self.sizes)
        self.sizes.append(count)
        return True


def _plain(num_draws: int) -> Grid:
    return Grid(num_draws, {}, (), {})


def _grid(
    num_draws: int, structure: Structure, estimators: Mapping[str, Estimator], axes: _Axes
) -> Grid:
    replicas, start = {}, 1
    for name, estimator in estimators.items():
        count = estimator.num_replicas(structure.sites[name])
        if count:
            replicas[name] = range(start, start + count)
            start += count
    return Grid(num_draws, replicas, tuple(axes.sizes), axes.of)


def _where_the_bound_is_taken(
    structure: Structure, dependencies: Dependencies
) -> tuple[tuple[str, ...], frozenset[FactorKey]]:
    """The plates that all factors which draws reach have in common, and the factors out of reach.

    Raises:
        GuideError: a subsampled plate would stand inside the bound.
    """
    reached = frozenset[FactorKey]().union(*dependencies.downstream.values())
    of_draws = [dependencies.plates[factor] for factor in dependencies.plates if factor in reached]
    mixed = frozenset[str]().union(*dependencies.mixed.values())
    first = of_draws[0] if of_draws else ()
    shared = tuple(p for p in first if p not in mixed and all(p in own for own in of_draws))
    _check_subsampled(structure, of_draws, shared)
    return shared, frozenset(dependencies.plates) - reached


def _check_subsampled(
    structure: Structure, of_draws: Collection[tuple[str, ...]], shared: tuple[str, ...]
) -> None:
    for plate in {p for plates in of_draws for p in plates}:
        known = structure.plates[plate]
        if plate not in shared and known.size < known.full_size:
            raise GuideError(
                f"plate '{plate}' is subsampled, but latents outside it keep the bound from being "
                f"taken row by row, and a bound that is no mean of log-weights cannot be scaled from "
                f"some rows. Use ELBO(), or all rows at once."
            )


__all__ = ["Choices", "Plan", "make_plan", "sticks"]
