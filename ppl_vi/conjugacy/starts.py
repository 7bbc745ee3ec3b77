"""Where coordinate ascent starts: at draws of the prior, or at clusters of the data.

With discrete latents, the elements of their plates are clustered by what is observed of each, and the
factors are set to their best at these assignments.

Source: Arthur and Vassilvitskii (2007), for the seeds of the clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Gamma

from ppl_vi.clusters import cluster_labels
from ppl_vi.compilation import Wish
from ppl_vi.conjugacy.ascent import Ascent, State
from ppl_vi.conjugacy.families import Tensors
from ppl_vi.conjugacy.kinds import Kind, kinds_of
from ppl_vi.conjugacy.unfolding import sides_of, unfolded
from ppl_vi.errors import ModelError
from ppl_vi.program import Term, Terms, draw_plainly, expanded_parameter, features, innermost

_SHARED = 0.01
"""The part of an element's probability that all states share, so that none is impossible."""

_MOST_PASSES, _HARDLY = 10, 1e-3

_UNKNOWN = -1
"""The label of an element of which nothing is observed."""


def draw_of_prior(name: str, distribution: Any) -> Tensor:
    """A draw of a site's prior, at which the Gamma family is no vaguer than an Exponential.

    Nearly all draws of Gamma(0.001, 0.001), a usual prior of precisions, are below 1e-100: no scale to
    start from. The mean is kept, for an InverseGamma that of its inverse.
    """
    family = type(innermost(distribution)).__name__
    if family not in ("Gamma", "InverseGamma"):
        return draw_plainly(name, distribution)
    shape, rate = (expanded_parameter(distribution, one) for one in ("concentration", "rate"))
    less_vague = shape.clamp(min=1.0)
    drawn = Gamma(less_vague, rate * less_vague / shape).sample()
    return drawn if family == "Gamma" else 1 / drawn


def start(
    ascent: Ascent, state: State, parameters: Sequence[Tensor] = (), wish: Wish = "auto"
) -> dict[str, Tensors]:
    """Natural parameters at clusters of the data, found from torch's random state.

    Which cluster belongs to which state matters where states differ: a likely order and a random one
    are tried, and the one with the higher bound is kept. A latent of which nothing is observed that has
    distances (no site of its own, or labels such as words) is assigned at random.

    Args:
        ascent: on a program with discrete latents.
        state: where the factors are before.
        parameters: of the model, which are moved to their best as well.
        wish: ``False`` captures and compiles nothing.
    """
    moments = ascent.moments(state)
    terms = ascent.terms(moments)
    own = {term.name: term for term in terms.every if term.own_dim is not None}
    drawn: dict[str, Tensor] = {}
    clustered: list[tuple[Kind, Tensor]] = []
    kinds = kinds_of(terms)
    for kind in kinds:
        labels = _labels(terms, kind)
        if labels is not None:
            clustered.append((kind, labels))
        else:
            drawn |= {name: _random(own[name], ascent.nesting) for name in kind.sites}
    sides = None if clustered or parameters else sides_of(ascent, terms, moments, kinds)
    if sides is not None:
        return unfolded(ascent, state, sides, wish)
    tried = []
    for order in (_likely_order, _random_order) if clustered else ():
        of = dict(drawn)
        for kind, labels in clustered:
            of |= _assigned(own, kind, order(own, kind, labels), ascent.nesting)
        tried.append((*_settled(ascent, state, of), of))
    tried = tried or [(*_settled(ascent, state, drawn), drawn)]
    _, found, of = max(tried, key=lambda one: one[0])
    if parameters:
        ascent.maximize(found, ascent.weights_from(found, of), parameters)
    return found


def _settled(
    ascent: Ascent, state: State, of: Mapping[str, Tensor]
) -> tuple[float, dict[str, Tensors]]:
    """The bound and the factors where these hardly rise any more at given probabilities.

    Factors hold each other back at first: a precision of a vague prior, and the mean beside it.
    """
    bound, found = -math.inf, dict(state)
    for _ in range(_MOST_PASSES):
        weights, before = ascent.weights_from(found, of), bound
        found = ascent.search(ascent.best(found, weights), weights)
        bound = float(ascent.elbo(found).nan_to_num(nan=-math.inf))
        if bound - before <= _HARDLY * abs(bound):
            break
    return bound, found


def _labels(terms: Terms, kind: Kind) -> Tensor | None:
    """``[elements]``: the cluster of each element of all sites of a kind; None where none can be found.

    A missing entry is taken for the mean of its column.
    """
    rows = _rows(terms, kind)
    if rows is None:
        return None
    known = rows.isfinite()
    if known.all():
        return cluster_labels(rows, kind.states)
    mean = torch.where(known, rows, math.nan).nanmean(0)
    some = known.any(-1)
    found = cluster_labels(torch.where(known, rows, mean)[some].nan_to_num(), kind.states)
    if found is None:
        return None
    labels = torch.full_like(some, _UNKNOWN, dtype=torch.long)
    labels[some] = found
    return labels


def _rows(terms: Terms, kind: Kind) -> Tensor | None:
    """``[elements, D]``: what is observed of each element of all sites of a kind, as far as it is."""
    rows = []
    for name in kind.sites:
        values = [features(terms.trace, name, observed) for observed in kind.seen[name]]
        numbers = [value for value in values if value is not None]
        if not numbers or kind.states < 2:
            return None
        rows.append(torch.cat(numbers, -1))
    return torch.cat(rows) if len({part.shape[1] for part in rows}) == 1 else None


def _likely_order(own: Mapping[str, Term], kind: Kind, labels: Tensor) -> Tensor:
    """The labels renamed: the larger a cluster, the likelier its state; along a chain, by time.

    States whose probabilities are themselves unknown come in order, as those of sticks should.
    """
    numbers = torch.arange(kind.states, device=labels.device)
    members = labels == numbers.unsqueeze(-1)
    term = own[kind.sites[0]]
    states = numbers
    if len(kind.sites) > 1:
        places = torch.arange(len(labels), device=labels.device)
        clusters = ((members * places).sum(-1) / members.sum(-1)).argsort()
    else:
        clusters = members.sum(-1).argsort(descending=True)
        if not term.log_prob.requires_grad:
            likely = term.log_prob.movedim(term.own_dim or 0, 0).flatten(1).mean(-1)
            states = likely.argsort(descending=True, stable=True)
    return _renamed(labels, clusters, states)


def _random_order(own: Mapping[str, Term], kind: Kind, labels: Tensor) -> Tensor:
    """The labels renamed at random."""
    numbers = torch.arange(kind.states, device=labels.device)
    return _renamed(labels, numbers, torch.randperm(kind.states).to(labels.device))


def _renamed(labels: Tensor, clusters: Tensor, states: Tensor) -> Tensor:
    named = torch.empty_like(clusters)
    named[clusters] = states
    return torch.where(labels == _UNKNOWN, labels, named[labels])


def _assigned(
    own: Mapping[str, Term], kind: Kind, labels: Tensor, nesting: int
) -> dict[str, Tensor]:
    """The probabilities of each site of a kind, nearly 1 at its labels."""
    numbers = torch.arange(kind.states, device=labels.device).unsqueeze(-1)
    share = _SHARED / kind.states
    some = torch.where(labels == _UNKNOWN, 1 / kind.states, share)
    every = torch.where(labels == numbers, 1 - _SHARED + share, some)
    elements = [_plates(own[name], nesting).numel() for name in kind.sites]
    parts = every.to(own[kind.sites[0]].log_prob).split(elements, -1)
    return {
        name: _laid_out(own[name], part, nesting)
        for name, part in zip(kind.sites, parts, strict=True)
    }


def _random(term: Term, nesting: int) -> Tensor:
    """Random probabilities of a site."""
    shape = term.log_prob.shape
    drawn = torch.rand(shape[term.own_dim or 0], _plates(term, nesting).numel())
    return _laid_out(term, (drawn / drawn.sum(0)).to(term.log_prob), nesting)


def _plates(term: Term, nesting: int) -> torch.Size:
    return term.log_prob.shape[term.log_prob.dim() - nesting :]


def _laid_out(term: Term, probabilities: Tensor, nesting: int) -> Tensor:
    """``[states, elements]`` laid out as the site's term is."""
    between = -(term.own_dim or 0) - 1 - nesting
    return probabilities.reshape([len(probabilities), *[1] * between, *_plates(term, nesting)])


def check_values(
    values: Mapping[str, Tensor], draws: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """Raise ModelError for a starting value that has no place, or the wrong shape."""
    for name, value in values.items():
        if name not in draws and name not in parameters:
            known = ", ".join(f"'{one}'" for one in sorted({*draws, *parameters})) or "none"
            raise ModelError(
                f"initial_values: '{name}' is no continuous latent or parameter of the model. Those "
                f"are {known}: leave '{name}' out, or name one of them."
            )
        if name in draws and value.shape != draws[name].shape:
            raise ModelError(
                f"initial_values: '{name}' has shape {tuple(value.shape)}, but the site has "
                f"{tuple(draws[name].shape)}. Give one value for each of its entries."
            )
