"""Where the bound comes from: reconstruction and KL by site and dimension, and units in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import nan, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.distributions import Independent
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ppl_vi.evaluation import WeightedPair, in_chunks
from ppl_vi.job import Job
from ppl_vi.preparation import dependencies_of, structure_of, subsampled_plate
from ppl_vi.program import (
    DataPlate,
    Factor,
    Pair,
    Run,
    Structure,
    divergence,
    draw_plainly,
    drawn_together,
    find_closed_forms,
    key,
    run,
    with_closed_forms,
)
from ppl_vi.randomness import forked_rng

if TYPE_CHECKING:
    import pandas as pd

ACTIVE = 0.01
"""Variance over the data of a unit's posterior mean above which it is in use (Burda et al. 2016)."""
COLLAPSED = 0.01
"""Nats for each element of a latent's plates below which its posterior is its prior."""

_ELEMENTS_AT_ONCE, _FEW_SAMPLES = 5_000_000, 16
_WHOLE = "all"


@dataclass
class _Sums:
    """What adds up over batches and draws.

    Attributes:
        reconstruction: E_q[log p] of observed sites, scaled to all rows.
        kl: of groups of latents, likewise.
        kl_of_dimensions: ``[*event]`` by latent.
        elements: of the site's plates, by site.
        means: ``[elements of a batch, dimensions]`` of each batch, by latent.
        spreads: the variance of these means that is due to the number of draws, likewise.
    """

    reconstruction: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kl: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))
    kl_of_dimensions: dict[str, Any] = field(default_factory=lambda: defaultdict(float))
    elements: dict[str, int] = field(default_factory=dict)
    means: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    spreads: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


class LatentRow(NamedTuple):
    """What is known of a site, or of one dimension of it; what is not is NaN."""

    reconstruction: float = nan
    kl: float = nan
    mean_variance: float = nan
    active: float = nan


@dataclass(frozen=True)
class LatentReport:
    """Reconstruction, KL and active units, per element of each site's plates.

    Attributes:
        rows: by site and dimension, or ``"all"`` of its dimensions.
    """

    rows: dict[tuple[str, Any], LatentRow]

    def table(self) -> pd.DataFrame:
        """The rows, for people."""
        import pandas as pd

        index = pd.MultiIndex.from_tuples(list(self.rows), names=["site", "dimension"])
        return pd.DataFrame(list(self.rows.values()), index=index, columns=list(LatentRow._fields))

    def collapsed(self) -> list[str]:
        """A line for each latent with plates whose posterior is its prior."""
        return [
            f"site '{site}': the posterior has collapsed onto the prior (KL {row.kl:.2g} nats "
            f"for each element, {row.active:.0f} units active). Let kl_schedule rise from 0, "
            f"start again, or give the likelihood less freedom."
            for (site, dimension), row in self.rows.items()
            if dimension == _WHOLE and row.mean_variance >= 0 and row.kl < COLLAPSED
        ]


def latent_report(batches: Iterable[WeightedPair], num_samples: int) -> LatentReport:
    """Draw from the guide, and tell where the bound comes from.

    Args:
        batches: pairs on batches that make up the data set, with their shares and handlers.
        num_samples: draws from the guide for each batch.
    """
    sums = _Sums()
    with torch.no_grad():
        for pair, share, handler in batches:
            with handler:
                handed = handler.names if isinstance(handler, DataPlate) else ()
                _add(sums, structure_of(pair), pair, handed, share, num_samples)
    return LatentReport(_rows(sums))


def collapse_remarks(job: Job) -> tuple[str, ...]:
    """What a report says of collapsed latents of rows, from a few draws on one batch."""
    batch = next(job.source.sequence())
    handler, pair = job.handler(batch), job.pair(batch)
    with handler:
        structure = structure_of(pair)
    rows = [p.name for p in structure.plates.values() if p.full_size == job.source.num_rows]
    if not any(set(rows) & set(structure.sites[n].plates) for n in structure.of_kind("latent")):
        return ()
    with forked_rng(seed=0):
        return tuple(latent_report([(pair, 1.0, handler)], _FEW_SAMPLES).collapsed())


def _add(
    sums: _Sums,
    structure: Structure,
    pair: Pair,
    handed: Collection[str],
    share: float,
    num_samples: int,
) -> None:
    """Add what the draws of one batch tell."""
    dependencies = dependencies_of(structure, pair, ())
    owner: dict[str, tuple[str, ...]] = {}
    for group in drawn_together(structure, dependencies):
        names = tuple(n for n in structure.of_kind("latent") if n in group) or tuple(sorted(group))
        owner |= dict.fromkeys(group, names)
    elements = max(1, sum(site.shape.numel() for site in structure.sites.values()))
    at_once = max(1, min(num_samples, _ELEMENTS_AT_ONCE // elements))
    taken = subsampled_plate(structure, handed)
    if taken is not None:
        at_once = 1  # draws of one run share the rows that the programs take by themselves
    values: dict[str, list[Tensor]] = defaultdict(list)
    for count in in_chunks(num_samples, at_once):
        drawn = run(structure, pair, draw_plainly, count)
        forms = find_closed_forms(structure, dependencies, drawn)
        part = share * count / num_samples
        for factor in with_closed_forms(drawn, forms, ()).factors:
            _add_factor(sums, structure, factor, owner, part)
        for name, dimensions in _by_dimension(drawn, structure).items():
            sums.kl_of_dimensions[name] += part * dimensions
        for name, latent in drawn.latents.items():
            if latent.value.is_floating_point() and structure.sites[name].kind == "latent":
                values[name].append(latent.value)
    for name, parts in values.items():
        if taken is not None and taken.name in structure.sites[name].plates:
            continue  # each draw is of other rows
        _add_means(sums, structure, name, torch.cat(parts))


def _add_factor(
    sums: _Sums,
    structure: Structure,
    factor: Factor,
    owner: Mapping[str, tuple[str, ...]],
    part: float,
) -> None:
    sizes = [structure.plates[plate].size for plate in factor.plates]
    drawn = factor.signed.double().expand(len(factor.log_prob), *sizes)
    value = part * drawn.mean(0).sum().item()
    own = [name for name in factor.sites if name in owner]
    if own:
        sums.kl[owner[own[0]]] -= value
        names: Iterable[str] = owner[own[0]]
    else:
        names = [", ".join(n for n in factor.sites if n not in structure.marginalized)]
        sums.reconstruction[names[0]] += value
    elements = prod(structure.plates[plate].full_size for plate in factor.plates)
    for name in names:
        sums.elements[name] = max(elements, sums.elements.get(name, 1))


def _by_dimension(drawn: Run, structure: Structure) -> dict[str, Tensor]:
    """``[*event]`` by latent, where prior and guide are products over the event; scaled to all rows."""
    factors = {key(factor): factor for factor in drawn.factors}
    found = {}
    for name in structure.of_kind("latent"):
        guide, model = factors["guide", (name,)], factors.get(("model", (name,)))
        if model is None or guide.plates != model.plates:
            continue
        parts = _elementwise(guide, model)
        if parts is not None:
            plates = [structure.plates[plate] for plate in guide.plates]
            sizes = [plate.size for plate in plates]
            each = parts.expand(len(parts), *sizes, *parts.shape[1 + len(plates) :]).double()
            summed = each.mean(0).flatten(0, len(plates) - 1).sum(0) if plates else each.mean(0)
            found[name] = prod(p.full_size / p.size for p in plates) * summed
    return found


def _elementwise(guide: Factor, model: Factor) -> Tensor | None:
    """``[S, *plates, *event]``: KL(q || p) of each entry of the event, by formula or by draws."""
    own, prior = guide.batched, model.batched
    if own is None or prior is None or own.masked or prior.masked:
        return None
    one, other = own.distribution, prior.distribution
    products = isinstance(one, Independent) and isinstance(other, Independent)
    if not products or one.base_dist.event_dim or other.base_dist.event_dim:
        return None
    shape = broadcast_shape(one.base_dist.batch_shape, other.base_dist.batch_shape)
    try:
        parts = divergence(one.base_dist, other.base_dist)
    except NotImplementedError:
        parts = one.base_dist.log_prob(own.value) - other.base_dist.log_prob(own.value)
    return own.place(parts.expand(shape), one.event_dim)


def _add_means(sums: _Sums, structure: Structure, name: str, values: Tensor) -> None:
    """Posterior means over the elements of the plates, and how noisy they are."""
    plates = structure.sites[name].plates
    if prod(structure.plates[plate].full_size for plate in plates) < 2:
        return  # nothing to compare; a batch of one row has others beside it
    size = prod(values.shape[1 : 1 + len(plates)])
    rows = values.double().reshape(len(values), size, -1)
    sums.means[name].append(rows.mean(0))
    if len(values) > 1:
        sums.spreads[name].append(rows.var(0) / len(values))


def _rows(sums: _Sums) -> dict[tuple[str, Any], LatentRow]:
    rows: dict[tuple[str, Any], LatentRow] = {}
    for name, value in sums.reconstruction.items():
        rows[name, _WHOLE] = LatentRow(reconstruction=value / sums.elements[name])
    for names, value in sums.kl.items():
        whole = LatentRow(kl=value / max(sums.elements[name] for name in names))
        variances = {name: _variance(sums, name) for name in names}
        known = [v for v in variances.values() if v is not None]
        if known:
            joined = torch.cat(known)
            active = float((joined > ACTIVE).sum())
            whole = whole._replace(mean_variance=float(joined.sum()), active=active)
        rows[", ".join(names), _WHOLE] = whole
        for name in names:
            rows |= _dimensions(sums, name, variances[name])
    return rows


def _variance(sums: _Sums, name: str) -> Tensor | None:
    """``[dimensions]``: over the data, of the posterior mean, less what is noise of the draws."""
    if sum(map(len, sums.means.get(name, []))) < 2:
        return None
    between = torch.cat(sums.means[name]).var(0)
    noise = torch.cat(sums.spreads[name]).mean(0) if name in sums.spreads else 0.0
    return (between - noise).clamp(min=0)


def _dimensions(
    sums: _Sums, name: str, variance: Tensor | None
) -> dict[tuple[str, Any], LatentRow]:
    """The rows for single dimensions of a latent."""
    parts = sums.kl_of_dimensions.get(name)
    kl = None if parts is None else parts.reshape(-1) / sums.elements[name]
    known = [each for each in (kl, variance) if each is not None]
    rows: dict[tuple[str, Any], LatentRow] = {}
    for i in range(len(known[0]) if known else 0):
        row = LatentRow() if kl is None else LatentRow(kl=float(kl[i]))
        if variance is not None:
            spread = float(variance[i])
            row = row._replace(mean_variance=spread, active=float(spread > ACTIVE))
        rows[name, i] = row
    return rows
