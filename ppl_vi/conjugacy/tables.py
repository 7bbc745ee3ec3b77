"""q of the enumerated latents, written as a product: each given some of those before it.

q(z) = Π_i q(z_i | parents of z_i)

Latents are taken out from the last to the first. One that goes ties those together that it shares a
term with, and these are its parents. Where one term depends on a latent and all of its parents, the
weights of the term are their joint probability. So it is along chains and trees; it is not where two
chains meet in every observation.

Source: Lauritzen and Spiegelhalter (1988); Koller and Friedman (2009), section 9.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.program import Term, Terms, plate_frames


class Table(NamedTuple):
    """q of one enumerated latent and those before it that it depends on.

    Attributes:
        parents: names, in the order of the program.
        joint: ``[*plates, *parents, states]``, which sums to one for each element.
    """

    parents: tuple[str, ...]
    joint: Tensor

    @property
    def marginal(self) -> Tensor:
        """``[*plates, states]``: q of the latent by itself."""
        last = self.joint.dim() - 1
        dims = range(last - len(self.parents), last)
        return self.joint.sum(list(dims)) if self.parents else self.joint

    def given(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """``[*particles, *plates, states]``: q of the latent, given draws of its parents.

        Args:
            drawn: numbers of states by name, ``[*particles, *plates]`` with plates of their own.
        """
        if not self.parents:
            return self.joint
        rank = self.joint.dim() - 1 - len(self.parents)
        sizes = enumerate(self.joint.shape[:rank], 1)
        elements = [
            torch.arange(size, device=self.joint.device).reshape([size] + [1] * (rank - number))
            for number, size in sizes
        ]
        return _shares(self.joint[(*elements, *(drawn[name] for name in self.parents))], 1)


def tables_of(terms: Terms, weigh: Callable[[Term], Tensor]) -> dict[str, Table]:
    """The tables of enumerated latents, in the order of the program.

    Left out are those whose q is no such product, with all that are tied to them.

    Args:
        terms: of a program.
        weigh: the weights of a term's entries.
    """
    own = {term.name: term for term in terms.every if term.own_dim is not None}
    parents = _parents(own, [set(_dims(term)) for term in terms.every])
    holders: dict[str, list[Term]] = {name: [] for name in own}
    for term in (*own.values(), *terms.every):
        for name in _dims(term):
            holders[name].append(term)
    found = {}
    for name, before in parents.items():
        together = {name, *before}
        fitting = (
            t for t in holders[name] if together <= _dims(t).keys() and _fits(terms, t, name)
        )
        inside = all(_plates(terms, other) <= _plates(terms, name) for other in before)
        source = next(fitting, None) if inside else None
        if source is not None:
            found[name] = Table(before, _joint(source, weigh(source), (*before, name)))
    tied = _tied(parents, parents.keys() - found.keys())
    return {name: found[name] for name in parents if name not in tied}


def counts_of(terms: Terms, weigh: Callable[[Term], Tensor]) -> dict[str, Tensor]:
    """How many elements are expected in each state of each enumerated latent, ``[states]``.

    Masked elements are left out. Each row counts as often as its scale says.
    """
    found = {}
    for term in terms.every:
        if term.own_dim is not None:
            weight, mask = weigh(term), terms.trace.nodes[term.name]["mask"]
            weight = weight if mask is None else weight * mask
            found[term.name] = weight.movedim(term.own_dim, 0).flatten(1).sum(-1)
    return found


def _parents(names: Iterable[str], ties: Iterable[set[str]]) -> dict[str, tuple[str, ...]]:
    """The parents of each latent, by elimination from the last to the first."""
    order = {name: number for number, name in enumerate(names)}
    buckets: dict[str, set[str]] = {name: {name} for name in order}

    def put(together: set[str]) -> None:
        if together:
            buckets[max(together, key=order.__getitem__)] |= together

    for tie in ties:
        put(tie)
    for name in reversed(order):
        put(buckets[name] - {name})
    return {name: tuple(sorted(buckets[name] - {name}, key=order.__getitem__)) for name in order}


def _tied(parents: Mapping[str, tuple[str, ...]], some: set[str]) -> set[str]:
    """Some latents, and all that are tied to them: up to the first of each, and down from there."""
    found = set(some)
    for name in reversed([*parents]):
        if name in found:
            found |= set(parents[name])
    for name, before in parents.items():
        if not found.isdisjoint(before):
            found.add(name)
    return found


def _dims(term: Term) -> dict[str, int]:
    """The dimension of each latent that the term depends on, from the right."""
    found = {name: dim for dim, name in term.latents.items()}
    # A latent with one state leaves no trace but in its own term.
    return found if term.own_dim is None else {**found, term.name: term.own_dim}


def _fits(terms: Terms, term: Term, name: str) -> bool:
    """Whether the term has weights for each element of the latent."""
    whole = term.name == name or terms.trace.nodes[term.name]["mask"] is None
    return whole and _plates(terms, term.name) == _plates(terms, name)


def _plates(terms: Terms, name: str) -> set[str]:
    return {frame.name for frame in plate_frames(terms.trace.nodes[name])}


def _joint(term: Term, weight: Tensor, names: tuple[str, ...]) -> Tensor:
    """``[*plates, *states of each]``: the joint probability of latents of a term."""
    dims = [_dims(term)[name] for name in names]
    joint = weight.movedim(dims, list(range(-len(dims), 0)))
    others = joint.dim() - len(dims) - term.depth
    return _shares(joint.sum(list(range(others))) if others else joint, len(dims))


def _shares(weights: Tensor, dims: int) -> Tensor:
    """The weights over their sum over the last dimensions; even ones where they are all zero."""
    last = list(range(-dims, 0))
    total = weights.sum(last, keepdim=True)
    even = weights.new_tensor(1.0) / weights.shape[-dims:].numel()
    return torch.where(total > 0, weights / total, even)
