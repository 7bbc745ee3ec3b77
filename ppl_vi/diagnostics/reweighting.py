"""Draws of a guide resampled by their smoothed importance weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_vi.diagnostics.pareto import KHat
from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import Structure, with_marginalized
from ppl_vi.questions.singles import drawn_again, on_all_rows, plate_of_singles, singles
from ppl_vi.sweeping.guides import marginalized

_PROPOSALS = 10_000


class ReweightedDraws(dict[str, Tensor]):
    """Draws by site, ``[num_samples, *plates, *event]``, resampled by importance weights.

    Attributes:
        khat: of the weights; above 0.7 these draws are not to be relied on.
        num_proposals: how many draws of the guide there were to choose from.
        num_distinct: how many of them were chosen, some several times; of rows with weights of their
            own the fewest.
    """

    khat: KHat
    num_proposals: int
    num_distinct: int

    def like(self, draws: Mapping[str, Tensor]) -> ReweightedDraws:
        """The same draws in another form."""
        other = ReweightedDraws(draws)
        vars(other).update(vars(self))
        return other


def reweighted(job: Job, num_samples: int) -> ReweightedDraws:
    """Resample 10,000 draws of the guide (or as many as are asked for, where these are more).

    Systematic resampling: each draw is taken its smoothed weight's share of times, to within one. Rows
    that nothing random ties are resampled each by itself. To be called inside the fitted parameters.

    Args:
        job: the fitted model and guide; all rows are taken at once.
        num_samples: how many draws.

    Raises:
        ModelError, GuideError: as ``singles`` does.
        FloatingPointError: as ``smoothed`` does.

    Warns:
        UserWarning: k-hat is above what these draws can correct, and the weights are uneven.

    Source: Smith and Gelfand (1992); Vehtari et al. (2024) for the weights.
    """
    job = marginalized(job)
    pair = job.pair(job.source.whole())
    structure, weighing = structure_of(pair), on_all_rows(pair)
    plate = plate_of_singles(weighing)
    proposed = [
        each._replace(values={}) for each in singles(weighing, max(_PROPOSALS, num_samples))
    ]
    log_w = torch.cat([each.log_w for each in proposed])
    khat = KHat.of(log_w, max(each.rounding for each in proposed))
    chosen = _systematic(khat.log_weights, num_samples)
    values: dict[str, Tensor] = {}
    start = 0
    for each in proposed:
        drawn = drawn_again(structure, pair, len(each.log_w), each.seed)
        _take(values, structure, drawn, chosen - start, plate)
        start += len(each.log_w)
    draws = ReweightedDraws(with_marginalized(structure, pair, values, num_samples))
    draws.khat, draws.num_proposals = khat, len(log_w)
    draws.num_distinct = min(len(column.unique()) for column in chosen.reshape(num_samples, -1).T)
    _warn(draws)
    return draws


def _systematic(log_weights: Tensor, count: int) -> Tensor:
    """``[count, ...]``: numbers of draws, in random order, from ``[S, ...]``."""
    cumulative = log_weights.exp().cumsum(0)
    cumulative = (cumulative / cumulative[-1]).movedim(0, -1).contiguous()
    shift = torch.rand(*cumulative.shape[:-1], 1, dtype=cumulative.dtype)
    points = (torch.arange(count) + shift) / count
    found = torch.searchsorted(cumulative, points).clamp(max=len(log_weights) - 1).movedim(-1, 0)
    # Rows with weights of their own are put together at random.
    return found.gather(0, torch.rand(found.shape).argsort(0))


def _take(
    values: dict[str, Tensor],
    structure: Structure,
    drawn: Mapping[str, Tensor],
    index: Tensor,
    plate: str | None,
) -> None:
    """Put those of some draws that were chosen where they belong.

    Args:
        values: ``[count, *shape]`` by site, filled in.
        structure: of the programs.
        drawn: ``[some, *shape]`` by site.
        index: ``[count]`` or ``[count, elements of the plate]``, numbers among these draws; others lie
            outside of them.
        plate: whose elements are chosen each by itself.
    """
    size = len(next(v for n, v in drawn.items() if n in structure.sites))
    for name, value in drawn.items():
        if name not in structure.sites:
            values[name] = value  # row numbers
            continue
        site = structure.sites[name]
        if plate is not None and plate not in site.plates:
            values[name] = value[:1].expand(len(index), *site.shape)  # nothing random reaches it
            continue
        where = [1] * len(site.shape)
        if plate is not None:
            where[len(site.shape) - site.event_dim + structure.plates[plate].dim] = index.shape[1]
        own = index.to(value.device).reshape(len(index), *where)
        inside = (own >= 0) & (own < size)
        taken = value.gather(0, own.clamp(0, size - 1).expand(-1, *site.shape))
        values[name] = torch.where(inside, taken, values.get(name, taken))


def _warn(draws: ReweightedDraws) -> None:
    if not draws.khat.usable and not draws.khat.close_in_bulk:
        warnings.warn(
            f"reweight: these are {draws.num_distinct} different ones of the guide's "
            f"{draws.num_proposals} draws, and their k-hat is {draws.khat}.",
            stacklevel=5,
        )
