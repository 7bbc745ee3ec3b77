"""Single draws of a guide, each with its own importance weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.evaluation import in_chunks
from ppl_vi.preparation import structure_of
from ppl_vi.program import Factor, Pair, Structure, draw_plainly, run_guide, run_model
from ppl_vi.questions.weighing import Held, Weighing, at_once, random_sites
from ppl_vi.randomness import forked_rng

_ROUNDINGS = 8
"""Of each term in a log-weight: it is rounded, and so is what it was computed from."""


class Singles(NamedTuple):
    """Some draws of everything that is random, each with its own weight p(x, z) / q(z).

    Attributes:
        seed: ``drawn_again`` with it repeats what the guide draws.
        values: ``[draws, *shape]`` by site; of sites that rows share, where these come in batches.
        log_w: ``[draws]``; ``[draws, rows]`` where nothing random ties the rows, up to a constant.
        rounding: how far rounding may move a log-weight.
    """

    seed: int
    values: dict[str, Tensor]
    log_w: Tensor
    rounding: float


def on_all_rows(pair: Pair) -> Weighing:
    """The weighing of a pair that has all rows."""
    return Weighing(lambda: [(pair, 1.0, nullcontext())], frozenset())


def plate_of_singles(weighing: Weighing) -> str | None:
    """The plate whose elements have weights of their own, since nothing random ties them; or None."""
    with torch.no_grad():
        _, plate, shared = weighing.found("an importance weight")
    return None if shared else plate


def singles(weighing: Weighing, num_draws: int) -> Iterator[Singles]:
    """Single draws with their weights on all rows, chunk by chunk.

    Args:
        weighing: what is weighed.
        num_draws: how many in all.

    Raises:
        ModelError: the program takes a subsample of its own.
        GuideError: the guide has a point for a site, and no density.
    """
    with torch.no_grad():
        structure, plate, shared = weighing.found("an importance weight")
    alone = None if shared else plate
    rows, sites = weighing.row_plates, structure.sites
    if rows:  # what one batch draws for its rows is not the next one's
        shared = [n for n in random_sites(structure) if rows.isdisjoint(sites[n].plates)]
    for count in in_chunks(num_draws, at_once(structure)):
        yield _weighed(weighing, alone, shared, count)


def drawn_again(structure: Structure, pair: Pair, count: int, seed: int) -> dict[str, Tensor]:
    """What the guide drew on one batch of all rows, ``[count, *shape]`` by site.

    Args:
        structure: of the pair.
        pair: with all rows.
        count: how many draws there were.
        seed: of the ``Singles``.
    """
    with torch.no_grad(), forked_rng(seed):
        return run_guide(structure, pair, draw_plainly, count).values


def _weighed(weighing: Weighing, alone: str | None, shared: Sequence[str], count: int) -> Singles:
    """So many draws; of ``shared`` sites the first batch's are those of all."""
    seed = int(torch.randint(2**31 - 1, ()))
    values: dict[str, Tensor] = {}
    parts, rounding = [], 0.0
    with torch.no_grad(), forked_rng(seed):
        for number, (pair, _, handler) in enumerate(weighing.batches()):
            with handler:
                structure = structure_of(pair)
                held = {name: values[name] for name in shared} if number else {}
                guide = run_guide(structure, pair, Held(structure, held), count)
                model = run_model(structure, pair, guide.values, count)
            values = values or guide.values
            factors = [*model, *guide.factors]
            if alone is not None:
                factors = [factor for factor in factors if alone in factor.plates]
            elif number:  # the first batch has the others already
                factors = [f for f in factors if not weighing.row_plates.isdisjoint(f.plates)]
            plates = () if alone is None else (alone,)
            parts.append(weighing.summed(structure, factors, count, plates))
            rounding += sum(map(_rounding, factors))
    log_w = torch.stack(parts).sum(0) if alone is None else torch.cat(parts, 1)
    return Singles(seed, values, log_w, rounding)


def _rounding(factor: Factor) -> float:
    """How far rounding may move the sum of a factor's terms."""
    sizes = factor.signed.abs()
    sizes = sizes.reshape(len(sizes), -1).sum(1)
    largest = sizes.nan_to_num(posinf=0.0).max().item()
    return _ROUNDINGS * torch.finfo(sizes.dtype).eps * largest
