"""Natural-gradient ascent on minibatches: factors of rows are solved for, the others move a step.

Where the terms of a batch of B of N rows count N / B times, the best natural parameters of a global
factor estimate those on all rows without bias, and the way there from the present ones is the natural
gradient.

Source: Hoffman, Blei, Wang and Paisley (2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.ascent import Ascent, State, Weights
from ppl_vi.conjugacy.families import Family, Tensors
from ppl_vi.errors import ModelError
from ppl_vi.program import LatentSite, Pair

_ROUNDS = 20
"""Of updates of factors that depend on each other, or on discrete latents, within a row."""
SPREAD = 0.3
"""Of the factor around the value that it starts at."""


def local_sites(
    ascent: Ascent, sites: Mapping[str, LatentSite], plates: frozenset[str]
) -> set[str]:
    """The factors inside the plates over the rows."""
    return {n for n in ascent.families if plates & {plate.name for plate in sites[n].plates}}


def on_rows(
    ascent: Ascent, pair: Pair, sites: Mapping[str, LatentSite], rows: Mapping[str, Tensor]
) -> Ascent:
    """The ascent with other arguments, whose plates may have other sizes.

    Args:
        ascent: as it was derived.
        pair: the model and the new arguments.
        sites: of the model with these arguments.
        rows: row numbers of subsampled plates.
    """
    families, draws = dict(ascent.families), dict(ascent.draws)
    for name, family in families.items():
        shape = sites[name].value.shape
        if shape == draws[name].shape:
            continue
        if not isinstance(family, Family):
            raise ModelError(
                f"site '{name}' shares a factor with others in a plate over rows that come in parts "
                f"(minibatches, or several processes). Use structured=False."
            )
        families[name] = replace(family, shape=shape)
        draws[name] = _resized(draws[name], shape)
    return replace(ascent, pair=pair, families=families, draws=draws, rows=rows)


def solved(
    ascent: Ascent, held: State, local: set[str]
) -> tuple[Tensor, dict[str, Tensors], Weights]:
    """The bound, all factors and the weights, with the factors of rows at their optimum."""
    state = dict(held)
    state |= {name: ascent.families[name].starts(ascent.draws, SPREAD) for name in local}
    own = sum(not local.isdisjoint(block) for block in ascent.blocks)
    rounds = _ROUNDS if own > 1 or (own and ascent.enumerated) else own
    bound, weights = ascent.weights(state)
    for _ in range(rounds):
        state = ascent.best(state, weights, local)
        bound, weights = ascent.weights(state)
    return bound, state, weights


def natural_step(
    ascent: Ascent, held: State, local: set[str], rate: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensors]]:
    """The bound on a batch, and the global factors after a step.

    Args:
        ascent: on the batch, whose rows count N / B times.
        held: the global factors.
        local: names of the others.
        rate: the step size, ``(t + delay) ** -forgetting``; all the way by default.
    """
    bound, state, weights = solved(ascent, held, local)
    moved = ascent.best(state, weights, set(held), rate)
    return ascent.totals((bound,))[0], {name: moved[name] for name in held}


def global_blocks(ascent: Ascent, local: set[str]) -> tuple[tuple[str, ...], ...]:
    """The factors of no row that are updated together, in order."""
    own = (tuple(name for name in block if name not in local) for block in ascent.blocks)
    return tuple(block for block in own if block)


def asked(
    ascent: Ascent, held: State, now: State, local: set[str], block: Sequence[str]
) -> tuple[Tensor, ...]:
    """What rows ask for of a block: the bound, and its gradients in the block's mean parameters.

    Args:
        ascent: on the rows, which count N / B times.
        held: the global factors at the start of a sweep, which the factors of rows and the discrete
            latents are at their optimum for; the bound is there.
        now: the global factors, those updated before the block included.
        local: names of the factors of rows.
        block: names of global factors.
    """
    bound, state, weights = solved(ascent, held, local)
    moments = ascent.moments({**state, **now})
    return bound, *(ascent.gradients(block, moments, weights) if block else ())


def _resized(value: Tensor, shape: Any) -> Tensor:
    """A draw with other sizes, its entries repeated as need be."""
    for dim, size in enumerate(shape):
        index = torch.arange(size, device=value.device) % value.shape[dim]
        value = value.index_select(dim, index)
    return value
