"""Importance weights of a guide's draws on all rows, in chunks of particles and rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vi.diagnostics.pareto import tail_length
from ppl_vi.errors import GuideError
from ppl_vi.evaluation import WeightedPair, in_chunks
from ppl_vi.preparation import check_whole, dependencies_of, structure_of
from ppl_vi.program import Factor, Pair, Structure, align, draw_plainly, run, run_guide
from ppl_vi.questions.weights import MeanWeight
from ppl_vi.randomness import forked_rng

_ELEMENTS_AT_ONCE = 5_000_000


class Means(NamedTuple):
    """Means of weights.

    Attributes:
        constant: a log-weight that all draws share.
        whole: their logarithms are summed: of all data, or of each batch's rows.
        rows: of single rows, batch by batch; empty where rows have none.
    """

    constant: float
    whole: Sequence[MeanWeight]
    rows: Sequence[MeanWeight]


class _Part(NamedTuple):
    """Log-weights of one batch, at ``[draws]`` of what rows share.

    Attributes:
        rows: ``[draws, rows]``, means over draws of the rows' own latents.
        beside: of factors in other plates over the rows, which batches add to.
        outside: of factors outside of these plates, the same in each batch.
        only_rows: whether there are no others than those of rows.
    """

    rows: MeanWeight
    beside: Tensor
    outside: Tensor
    only_rows: bool


@dataclass(frozen=True)
class Weighing:
    """What is weighed, and how its weights are averaged.

    Where the elements of a plate depend on each other through latents outside of it alone, each draw u
    of these has a mean for every element, over draws of the element's own latents:

    w = p(u) / q(u) Π_i (1/L) Σ_l p(x_i, z_il | u) / q(z_il | u)

    It has the expectation of a weight of one draw of everything, and much less variance. Without
    latents outside it is a product of means, one for each element.

    Attributes:
        batches: all rows in order, anew at each call.
        row_plates: the plates over the rows.
        posterior: draws the latents outside of these plates, so many of each, which then count as
            given; None where the guide draws them, and they are weighed as well.
    """

    batches: Callable[[], Iterable[WeightedPair]]
    row_plates: frozenset[str]
    posterior: Callable[[int], dict[str, Tensor]] | None = None

    def means(self, num_particles: int) -> Means:
        """The mean weights over K draws; where a plate has latents inside and outside, √K inside each.

        Raises:
            ModelError: the program takes a subsample of its own.
            GuideError: the guide has a point for a site, and no density.
        """
        with torch.no_grad():
            structure, plate, shared = self.found("a log evidence")
            if plate is not None and not shared and self.posterior is None:
                return self._by_row(plate, num_particles)
            some_local = len(shared) < len(random_sites(structure))
            inner = math.ceil(num_particles**0.5) if some_local else 1
            return self._by_draw(structure, plate, shared, num_particles, inner)

    def found(self, asked: str) -> tuple[Structure, str | None, list[str]]:
        """The structure, the plate whose elements go by themselves, and the random sites outside it.

        Args:
            asked: what needs all rows, in words.

        Raises:
            ModelError, GuideError: as ``means`` does.
        """
        pair, _, handler = next(iter(self.batches()))
        with handler:
            structure = structure_of(pair)
            check_whole(structure, self.row_plates, asked)
            _check_points(structure, pair, given=self.posterior is not None)
            plate = self._plate(structure, pair)
        random = random_sites(structure)
        shared = [n for n in random if plate is None or plate not in structure.sites[n].plates]
        return structure, plate, shared

    def _by_row(self, plate: str, num_particles: int) -> Means:
        """Nothing random ties the rows: each has a mean of its own."""
        constant, rows = 0.0, []
        for number, (pair, _, handler) in enumerate(self.batches()):
            with handler:
                part = self._weigh(pair, plate, {}, 1, num_particles)
            constant += part.beside.item() + (part.outside.item() if number == 0 else 0.0)
            rows.append(part.rows.at(0))
        return Means(constant, rows, rows)

    def _by_draw(
        self, structure: Structure, plate: str | None, shared: Sequence[str], draws: int, inner: int
    ) -> Means:
        """A mean over draws of what rows share."""
        whole, rows = MeanWeight(tail=tail_length(draws) + 1), dict[int, MeanWeight]()
        only_rows = True
        for count in in_chunks(draws, max(1, at_once(structure) // inner)):
            values = self._draw_shared(shared, count)
            log_w = torch.zeros(())
            for number, (pair, _, handler) in enumerate(self.batches()):
                with handler:
                    part = self._weigh(pair, plate, values, count, inner)
                log_w = log_w + part.beside + (part.outside if number == 0 else 0.0)
                only_rows = only_rows and part.only_rows
                if part.rows.count:
                    log_w = log_w + part.rows.log_mean.sum(1)
                    rows.setdefault(number, MeanWeight()).add(part.rows.log_mean)
            whole.add(log_w)
        pointwise = list(rows.values()) if self.posterior is not None and only_rows else []
        return Means(0.0, [whole], pointwise)

    def _draw_shared(self, shared: Sequence[str], count: int) -> dict[str, Tensor]:
        if self.posterior is not None:
            return self.posterior(count)
        pair, _, handler = next(iter(self.batches()))
        with handler:
            drawn = run_guide(structure_of(pair), pair, draw_plainly, count).values
        return {name: drawn[name] for name in shared}

    def _weigh(
        self, pair: Pair, plate: str | None, values: Mapping[str, Tensor], count: int, inner: int
    ) -> _Part:
        """Weigh a batch, at ``count`` draws of what rows share, with ``inner`` draws of rows each."""
        structure, rows = structure_of(pair), MeanWeight()
        beside = outside = torch.zeros(count)
        only_rows = True
        for size in in_chunks(inner, max(1, at_once(structure) // count)):
            first = not rows.count
            given = {name: value.repeat_interleave(size, 0) for name, value in values.items()}
            held = Held(structure, given)
            factors = [
                factor
                for factor in run(structure, pair, held, count * size).factors
                if self.posterior is None or not values.keys() >= set(factor.sites)
            ]
            own = [f for f in factors if plate in f.plates]
            rest = [f for f in factors if plate not in f.plates]
            if own:
                log_w = self.summed(structure, own, count * size, (str(plate),))
                rows.add(log_w.reshape(count, size, -1).movedim(1, 0))
            if first:  # no draw of rows reaches these
                of_rows = [f for f in rest if not self.row_plates.isdisjoint(f.plates)]
                constant = [f for f in rest if self.row_plates.isdisjoint(f.plates)]
                beside, outside = (
                    self.summed(structure, group, count * size, ()).reshape(count, size)[:, 0]
                    for group in (of_rows, constant)
                )
                only_rows = not rest
        return _Part(rows, beside, outside, only_rows)

    def summed(
        self, structure: Structure, factors: Sequence[Factor], size: int, plates: tuple[str, ...]
    ) -> Tensor:
        """``[size, *plates]``: the factors' sum, in which each row counts once."""
        total = torch.zeros(size, *(structure.plates[p].size for p in plates), dtype=torch.float64)
        for factor in factors:
            sizes = [structure.plates[p] for p in factor.plates if p in self.row_plates]
            once = math.prod(plate.size / plate.full_size for plate in sizes)
            own = align(factor.signed.double(), factor.plates, plates)
            total = total.to(own.device) + once * own
        return total

    def _plate(self, structure: Structure, pair: Pair) -> str | None:
        """The largest plate whose elements nothing inside of it ties; for given draws, of rows."""
        batched = any(plate.size < plate.full_size for plate in structure.plates.values())
        of_rows = batched or self.posterior is not None
        allowed = self.row_plates if of_rows else structure.plates.keys()
        random = random_sites(structure)
        for plate in sorted(allowed, key=lambda name: -structure.plates[name].size):
            local = tuple(n for n in random if plate in structure.sites[n].plates)
            if local and _is_independent(structure, pair, plate, local):
                return plate
        alone = not any(set(structure.sites[n].plates) & self.row_plates for n in random)
        return min(self.row_plates, default=None) if self.posterior is not None and alone else None


def _is_independent(structure: Structure, pair: Pair, plate: str, local: tuple[str, ...]) -> bool:
    """Whether draws inside of the plate reach factors of their own element alone."""
    found = dependencies_of(structure, pair, local)
    return all(
        plate not in found.mixed[name]
        and all(plate in found.plates[factor] for factor in found.downstream[name])
        for name in local
    )


def random_sites(structure: Structure) -> list[str]:
    """The sites that the guide draws at random."""
    return [name for name in structure.drawn if not structure.sites[name].fixed]


class Held:
    """Give sites of the guide these values, and draw the others.

    Args:
        structure: of the programs.
        values: ``[num_particles, *shape]`` by site.
    """

    def __init__(self, structure: Structure, values: Mapping[str, Tensor]) -> None:
        self._together, self._values = structure.guide_particles == "plate", values
        self._calls = dict.fromkeys(values, 0)

    def __call__(self, name: str, distribution: Any) -> Tensor:
        if name not in self._values:
            return draw_plainly(name, distribution)
        value = self._values[name]
        if self._together:
            return value.reshape(distribution.shape())
        self._calls[name] += 1
        return value[self._calls[name] - 1]


def _check_points(structure: Structure, pair: Pair, given: bool) -> None:
    """Raise a GuideError for a latent that the guide holds at a point, unless it counts as given."""
    fixed = [n for n in structure.of_kind("latent") if structure.sites[n].fixed]
    if given or not fixed:
        return
    with forked_rng():
        values = run_guide(structure, pair, draw_plainly, 2).values
    for name in fixed:
        if values[name].numel() and torch.equal(values[name][0], values[name][1]):
            raise GuideError(
                f"site '{name}': the guide holds it at a point (Delta), and a point has no weight in "
                f"an integral. Fit a guide with a density, such as 'normal'."
            )


def elements(structure: Structure) -> int:
    """The numbers in one draw, those of summed-out latents for each of their values."""
    sites = structure.sites.values()
    return sum(
        site.shape.numel() * (site.support_size if site.kind == "marginalized" else 1)
        for site in sites
    )


def at_once(structure: Structure) -> int:
    """How many particles are run together."""
    return max(1, _ELEMENTS_AT_ONCE // max(1, elements(structure)))
