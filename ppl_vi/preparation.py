"""What is found out once about a model, a guide and the shapes of their data, and then reused."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_flatten

from ppl_vi.estimators import Estimator, Estimators, choose_estimators
from ppl_vi.program import Dependencies, Pair, Structure, find_dependencies, inspect


class Choices(Protocol):
    """The part of an objective that decides how sites are estimated."""

    @property
    def num_particles(self) -> int: ...

    @property
    def estimators(self) -> Estimators: ...


@dataclass(frozen=True)
class Prepared:
    """The structure of a pair, and the estimator and dependencies of its sites."""

    structure: Structure
    estimators: Mapping[str, Estimator]
    dependencies: Dependencies | None


def prepare(choices: Choices, pair: Pair) -> Prepared:
    """The pair's structure, the estimators of its sites and, where these ask, the dependencies.

    Raises:
        GuideError, ModelError, DataError: as ``inspect`` and the estimators do.
    """
    structure = structure_of(pair)
    estimators = choose_estimators(structure, choices.estimators, choices.num_particles)
    credited = tuple(name for name, estimator in estimators.items() if estimator.uses_credit)
    if not credited:
        return Prepared(structure, estimators, None)
    known, asked = _known(pair), ("dependencies", credited, _shapes(pair))
    if asked not in known:
        known[asked] = find_dependencies(structure, pair, credited)
    return Prepared(structure, estimators, known[asked])


def structure_of(pair: Pair) -> Structure:
    """The structure of a pair, found once for each shape of its arguments.

    Raises:
        GuideError, ModelError, DataError: as ``inspect`` does.
    """
    known, asked = _known(pair), ("structure", _shapes(pair))
    if asked not in known:
        known[asked] = inspect(pair)
    structure: Structure = known[asked]
    return structure


def inspected(pair: Pair) -> Structure:
    """The structure of a pair, found anew: for a fit's first look at its programs and its data.

    Raises:
        GuideError, ModelError, DataError: as ``inspect`` does.
    """
    known = _known(pair)
    # Programs may have changed since, through what they close over.
    for asked in [asked for asked in known if asked[-1] == _shapes(pair)]:
        del known[asked]
    return structure_of(pair)


_Known = dict[tuple[Any, ...], Any]
_KNOWN: dict[tuple[int, int], dict[Hashable, _Known]] = {}
_KEPT: list[Any] = []


def _known(pair: Pair) -> _Known:
    """What is known of a pair; forgotten together with its model or its guide."""
    owners = [getattr(program, "__self__", program) for program in (pair.model, pair.guide)]
    identity = (id(owners[0]), id(owners[1]))
    if identity not in _KNOWN:
        _KNOWN[identity] = {}
        for owner in owners:
            try:
                weakref.finalize(owner, _KNOWN.pop, identity, None)
            except TypeError:  # cannot be watched (slots, tuples): no other may get its identity
                _KEPT.append(owner)
    methods = tuple(getattr(p, "__func__", None) for p in (pair.model, pair.guide))
    return _KNOWN[identity].setdefault(methods, {})


def _shapes(pair: Pair) -> Hashable:
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
