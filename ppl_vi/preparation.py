"""What is found out once about a model, a guide and the shapes of their data, and then reused."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ppl_vi.drawing import check_landing, draw_with, naming
from ppl_vi.errors import ModelError
from ppl_vi.memory import known_about
from ppl_vi.planning import Choices, Plan, make_plan
from ppl_vi.program import (
    ClosedForm,
    Dependencies,
    Pair,
    Plate,
    Structure,
    draw_plainly,
    find_closed_forms,
    find_dependencies,
    independent_of_draws,
    inspect,
    run,
)
from ppl_vi.randomness import forked_rng


def prepare(choices: Choices, pair: Pair) -> Plan:
    """The plan of an objective's estimates on a pair, made once for each shape of its arguments.

    Raises:
        GuideError, ModelError, DataError: as ``inspect`` and ``make_plan`` do.
    """
    known, asked = known_about(pair), ("plan", id(choices), shapes_of(pair))
    owner, plan = known.get(asked, (None, None))
    if owner is None or owner() is not choices:  # another objective may have had this identity
        plan = _made(choices, pair)
        known[asked] = weakref.ref(choices), plan
    made: Plan = plan
    return made


def _made(choices: Choices, pair: Pair) -> Plan:
    structure = structure_of(pair)
    plan = make_plan(
        choices,
        structure,
        lambda sites: dependencies_of(structure, pair, sites),
        lambda dependencies: _closed_forms(structure, dependencies, pair),
    )
    if plan.sampled:
        with forked_rng(), torch.no_grad():
            check_landing(plan, pair)
    if plan.dependencies is None:
        return plan
    if any(estimator.needs_batch for estimator in plan.estimators.values()):
        with forked_rng(), torch.no_grad():  # what a proposal or a network can't do is said here
            made = draw_with(plan, pair)
            for name, estimator in plan.estimators.items():
                with naming(name, estimator):
                    estimator.probe(made.latents[name])
    return replace(plan, dependencies=independent_of_draws(plan.dependencies, plan.forms))


def dependencies_of(structure: Structure, pair: Pair, sites: tuple[str, ...]) -> Dependencies:
    """What each draw of the guide reaches, found once for each shape of the arguments."""
    known, asked = known_about(pair), ("dependencies", sites, shapes_of(pair))
    if asked not in known:
        known[asked] = find_dependencies(structure, pair, sites)
    dependencies: Dependencies = known[asked]
    return dependencies


def _closed_forms(
    structure: Structure, dependencies: Dependencies, pair: Pair
) -> dict[str, ClosedForm]:
    known, asked = known_about(pair), ("closed forms", shapes_of(pair))
    if asked not in known:
        with forked_rng(), torch.enable_grad():  # derivatives are tried too
            tried = run(structure, pair, draw_plainly, 2)
            known[asked] = find_closed_forms(structure, dependencies, tried)
    forms: dict[str, ClosedForm] = known[asked]
    return forms


def structure_of(pair: Pair) -> Structure:
    """The structure of a pair, found once for each shape of its arguments.

    Raises:
        GuideError, ModelError, DataError: as ``inspect`` does.
    """
    known, asked = known_about(pair), ("structure", shapes_of(pair))
    if asked not in known:
        known[asked] = inspect(pair)
    structure: Structure = known[asked]
    return structure


def subsampled_plate(structure: Structure, handed: Collection[str] = ()) -> Plate | None:
    """A plate whose elements the programs take by themselves; None where they take all.

    Args:
        structure: of the programs.
        handed: plates that are handed their rows.
    """
    for plate in structure.plates.values():
        if plate.size < plate.full_size and plate.name not in handed:
            return plate
    return None


def check_whole(structure: Structure, handed: Collection[str], asked: str) -> None:
    """Raise a ModelError where the programs take a subsample by themselves.

    Args:
        structure: of the programs.
        handed: plates that are handed their rows.
        asked: what needs all rows, in words.
    """
    plate = subsampled_plate(structure, handed)
    if plate is not None:
        raise ModelError(
            f"plate '{plate.name}' has {plate.size} of {plate.full_size} elements, which the model "
            f"takes by itself, but {asked} needs all of them. Leave the subsampling to "
            f"fit(batch_size=...)."
        )


def forget(pair: Pair) -> None:
    """Forget what is known of a pair: for a fit's first look at its programs and its data.

    Programs may have changed since, through what they close over, and so may the number of rows.
    """
    known_about(pair).clear()


def shapes_of(pair: Pair) -> Hashable:
    """The shapes of a pair's arguments, and the values of those that are no tensors."""
    leaves, layout = tree_flatten((pair.args, pair.kwargs))
    return str(layout), tuple(_shape(leaf) for leaf in leaves)


def _shape(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    if isinstance(leaf, (int, str, bool)):
        return leaf
    # An array or a table has a shape; of other objects the type has to do: a float may well change
    # with every step, an annealing weight for one.
    return str(type(leaf)), str(getattr(leaf, "shape", None))
