"""Discrete latents of one kind: those whose states mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ppl_vi.program import Terms, innermost

_ONE_ELEMENT = 1.0


class Kind(NamedTuple):
    """Enumerated latents whose states mean the same: one site, or the sites of a chain.

    Attributes:
        sites: names, in the order of the program.
        states: K.
        seen: by site, the names of the observed sites that depend on it and on no other.
    """

    sites: tuple[str, ...]
    states: int
    seen: dict[str, tuple[str, ...]]


class _Child(NamedTuple):
    """An observed site, and the enumerated latents that it depends on."""

    name: str
    parents: tuple[str, ...]
    look: Any


def kinds_of(terms: Terms) -> list[Kind]:
    """The enumerated latents of a program by kind.

    Two are of one kind where they have as many states, and what is observed of them has the same family
    and comes from the same factors and parameters.

    Args:
        terms: with a graph to the moments of the factors and to the parameters.
    """
    states = {t.name: t.log_prob.shape[t.own_dim] for t in terms.every if t.own_dim is not None}
    children = _children(terms)
    by_look: dict[Any, list[str]] = {}
    for name, size in states.items():
        own = [child for child in children if name in child.parents]
        looks = [(c.look, c.parents.index(name), len(c.parents)) for c in own]
        by_look.setdefault((size, tuple(looks) or name), []).append(name)
    return [
        Kind(
            tuple(names),
            states[names[0]],
            {n: tuple(c.name for c in children if c.parents == (n,)) for n in names},
        )
        for names in by_look.values()
    ]


def _children(terms: Terms) -> list[_Child]:
    """The observed sites that depend on enumerated latents."""
    found = []
    for term in terms.every:
        site, parents = terms.trace.nodes[term.name], tuple(term.latents.values())
        if site["is_observed"] and parents:
            family = type(innermost(site["fn"])).__name__
            look = (family, site["fn"].event_shape, origins(term.log_prob))
            found.append(_Child(term.name, parents, look))
    return found


def origins(tensor: Tensor) -> frozenset[int]:
    """The ``id`` of each tensor that a tensor was computed from, as far as it has gradients."""
    found: set[int] = set()
    visited: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return frozenset(found)


def remarks_on(occupancies: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Which components are empty, a line for each discrete site that has some.

    Args:
        occupancies: the expected number of elements in each state, ``[states]`` by site.
    """
    lines = []
    for name, counts in occupancies.items():
        empty = (counts < _ONE_ELEMENT).nonzero().flatten().tolist()
        if empty and counts.sum().round() >= len(counts):
            lines.append(
                f"site '{name}': {len(empty)} of {len(counts)} components are empty (less than "
                f"one element expected): {', '.join(map(str, empty))}"
            )
    return tuple(lines)
