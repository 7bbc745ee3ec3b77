"""The ELBO of a model and a guide on the whole data set, with its standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch

from ppl_vi.estimate import Estimate
from ppl_vi.preparation import structure_of, subsampled_plate
from ppl_vi.program import DataPlate, Pair, Structure, draw_plainly, run
from ppl_vi.randomness import forked_rng
from ppl_vi.ranks.group import ALONE, Ranks

_MOST_DRAWS, _FEWEST_DRAWS = 1_000, 16
_ELEMENTS_AT_ONCE, _ELEMENTS_IN_ALL = 500_000, 5_000_000
"""More at once leave the processor's caches: that takes twice as long."""

WeightedPair = tuple[Pair, float, AbstractContextManager[object]]
"""A pair on one batch, the batch's share of the rows, and the handler that scales it."""


def estimate_elbo(batches: Iterable[WeightedPair], ranks: Ranks = ALONE) -> Estimate:
    """Estimate E_q[log p(x, z) - log q(z)] on all rows, from draws of its own in each batch.

    Unbiased: the mean over batches, weighted by their share of the rows, of scaled ELBOs. Random
    state is left as it was, and the same numbers are drawn each time, so that fits compare.

    Args:
        batches: pairs on batches that make up the data set, with their shares and handlers.
        ranks: the processes, if each of several has a part of every batch.
    """
    total, variance = 0.0, 0.0
    with torch.no_grad(), forked_rng(seed=0):
        for pair, share, handler in batches:
            with handler:
                log_w = _log_weights(structure_of(pair), pair, handler, share, ranks)
            log_w = ranks.sum(share * log_w if share else torch.zeros_like(log_w))
            total += log_w.mean().item()
            variance += log_w.var().item() / len(log_w)
    return Estimate(total, variance**0.5)


def _log_weights(
    structure: Structure,
    pair: Pair,
    handler: AbstractContextManager[object],
    share: float,
    ranks: Ranks,
) -> torch.Tensor:
    elements = max(1, sum(site.shape.numel() for site in structure.sites.values()))
    if ranks.size > 1:  # as many draws as a process alone would take
        share, elements = ranks.sum(torch.tensor([share, elements], dtype=torch.float64)).tolist()
        elements = int(elements)
    affordable = int(share * _ELEMENTS_IN_ALL) // elements  # many batches need fewer draws each
    fewest = max(2, round(share * _FEWEST_DRAWS))  # two tell a variance
    draws = min(_MOST_DRAWS, max(fewest, affordable))
    at_once = max(1, min(draws, _ELEMENTS_AT_ONCE // elements))
    handed = handler.names if isinstance(handler, DataPlate) else ()
    if subsampled_plate(structure, handed) is not None:
        at_once = 1  # the program subsamples by itself; draws of one run share their rows
    counts = in_chunks(draws, at_once)
    chunks = [run(structure, pair, draw_plainly, count).log_weights() for count in counts]
    return torch.cat(chunks).double()


def in_chunks(total: int, most: int) -> Iterator[int]:
    """Sizes that add up to the total."""
    yield from [most] * (total // most)
    if total % most:
        yield total % most
