"""Starts of discrete latents that are seen as labels, such as the topics of words.

Between labels there are no distances to cluster by, and from random assignments sweeps end in poor
optima. So all states start nearly alike, and while they are, the latents' own side of the program (the
topics of each document) is settled again and again before the states move.

Source: Hoffman, Blei and Bach (2010), who settle each document before topics move.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.distributions import Gamma

from ppl_vi.conjugacy.ascent import Ascent, State
from ppl_vi.conjugacy.families import Tensors
from ppl_vi.conjugacy.kinds import Kind, origins
from ppl_vi.conjugacy.positive_families import DirichletFamily
from ppl_vi.program import Terms

_EVENNESS = 100.0
"""The shape of the Gamma that states differ by at first, by a tenth."""
_SWEEPS, _ROUNDS = 3, 10


class Sides(NamedTuple):
    """The Dirichlet factors around a discrete latent.

    Attributes:
        own: what its own probabilities come from, in several groups.
        seen: what the labels that are seen of it come from.
    """

    own: frozenset[str]
    seen: frozenset[str]


def sides_of(ascent: Ascent, terms: Terms, moments: State, kinds: list[Kind]) -> Sides | None:
    """The factors around the only discrete latent, where there is something to settle."""
    if len(kinds) != 1 or len(kinds[0].sites) != 1:
        return None
    (name,) = kinds[0].sites
    names = {id(leaf): site for site, own in moments.items() for leaf in own}
    dirichlet = {n for n, f in ascent.families.items() if isinstance(f, DirichletFamily)}
    by_term = {
        term.name: dirichlet & {names[key] for key in origins(term.log_prob) if key in names}
        for term in terms.every
        if term.name in (name, *kinds[0].seen[name])
    }
    own = frozenset(by_term.pop(name))
    seen = frozenset().union(*by_term.values()) - own
    groups = any(ascent.draws[site].numel() > kinds[0].states for site in own)
    return Sides(own, seen) if seen and groups else None


def unfolded(ascent: Ascent, state: State, sides: Sides) -> dict[str, Tensors]:
    """Natural parameters after states that start nearly alike have begun to part."""
    found = dict(state)
    for site in sides.own | sides.seen:
        concentration = torch.ones_like(ascent.draws[site])
        if site in sides.seen:
            concentration = Gamma(_EVENNESS * concentration, _EVENNESS).sample()
        found[site] = (concentration - 1,)
    _, weights = ascent.weights(found)
    for _ in range(_SWEEPS):
        for _ in range(_ROUNDS):
            found = ascent.best(found, weights, sides.own)
            _, weights = ascent.weights(found)
        found = ascent.best(found, weights)
        _, weights = ascent.weights(found)
    return found
