"""Draws from a fitted posterior on all rows of the data, in parts that memory can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vi.evaluation import in_chunks
from ppl_vi.job import Job
from ppl_vi.preparation import check_whole, structure_of, subsampled_plate
from ppl_vi.program import DataPlate, Pair, Plate, Structure, draw_latents, draw_plainly
from ppl_vi.questions.weighing import Held, elements
from ppl_vi.sweeping.guides import marginalized
from ppl_vi.threads import threads_for

Draws = dict[str, Tensor]
Groups = dict[str, Draws]
Sampler = Callable[[Structure, Pair, int, Draws], Draws]
"""Draws latents, given some: ``sampler(structure, pair, num_draws, given)``, by site."""

ELEMENTS_AT_ONCE = 5_000_000


class Part(NamedTuple):
    """Some rows of the data.

    Attributes:
        pair: the model and the guide on them.
        handler: tells the programs which rows they are.
        new: how many of them, the last ones, are in no part before; None for all.
    """

    pair: Pair
    handler: AbstractContextManager[Any]
    new: int | None = None


class Drawn(NamedTuple):
    """Draws on one part of the rows.

    Attributes:
        structure: of the programs.
        pair: the model and the guide with their arguments.
        values: ``[num_draws, *shape]`` by site, with the site's shape in a single run, and row numbers
            by plate.
        num_draws: how many.
        rows: the plates over the rows, where there are several parts.
        first: whether this is the first part.
        new: how many of the rows, the last ones, are in no part before; None for all.
    """

    structure: Structure
    pair: Pair
    values: Draws
    num_draws: int
    rows: frozenset[str] = frozenset()
    first: bool = True
    new: int | None = None

    def without_repeats(self, tensor: Tensor, plates: Sequence[str]) -> Tensor:
        """``[num_draws, *plates, ...]`` of the rows that are in no part before."""
        for dim, plate in enumerate(plates, start=1):
            if plate in self.rows and self.new is not None:
                tensor = tensor.narrow(dim, tensor.shape[dim] - self.new, self.new)
        return tensor


class Posterior:
    """The posterior of a fit on all rows; to be used inside the fitted parameters.

    A fit on all rows is one part. The rows of a fit on minibatches are taken in several where they are
    more than memory should hold, and so are those of a model that subsamples by itself: what lies
    outside of rows is drawn once, and the rows' own latents given that.

    Args:
        job: the fitted model and guide.

    Attributes:
        structure: of the programs on a batch of the usual size.

    Raises:
        ModelError: the model subsamples by itself in a way that no order of its rows undoes.
    """

    def __init__(self, job: Job) -> None:
        self.job, self._usual = job, next(job.source.sequence())
        structure = self._inspected()
        if any(structure.sites[name].enumerable for name in structure.of_kind("latent")):
            # Those of exact updates have their exact conditional, as with other guides.
            self.job = job = marginalized(job)
            structure = self._inspected()
        self.structure = structure
        self._own = subsampled_plate(structure, job.data_plates)
        self._rows = frozenset({self._own.name}) if self._own else job.data_plates
        latents = structure.of_kind("latent", "auxiliary", "marginalized")
        self._shared = [n for n in latents if self._rows.isdisjoint(structure.sites[n].plates)]
        if self._own and (job.data_plates or self._tied):
            check_whole(structure, job.data_plates, "a draw from the posterior")
        check_whole(structure, self._rows, "a draw from the posterior")

    def _inspected(self) -> Structure:
        with self.job.handler(self._usual):
            return structure_of(self.job.pair(self._usual))

    def collect(
        self,
        num_draws: int,
        answer: Callable[[Drawn], Mapping[str, Draws]],
        sampler: Sampler | None = None,
    ) -> Groups:
        """What draws tell, put together from chunks of draws and parts of the rows.

        Args:
            num_draws: how many draws.
            answer: from the draws on one part to tensors by group and name. Those named by a site are
                ``[num_draws, *plates, ...]`` and are joined along rows; others are ``[num_draws]``,
                and add up.
            sampler: draws the latents; by default from the posterior.
        """
        sampler = _posterior_draws if sampler is None else sampler
        at_once = max(1, ELEMENTS_AT_ONCE // self._elements(self._part_size))
        chunks = []
        with threads_for(self.structure, self.job.pair(self._usual)):
            for count in in_chunks(num_draws, at_once):
                given: Draws = {}
                found: list[tuple[Drawn, Mapping[str, Draws]]] = []
                for part in self._parts():
                    with part.handler:
                        structure = structure_of(part.pair)
                        values = sampler(structure, part.pair, count, given)
                        drawn = Drawn(
                            structure, part.pair, values, count, self._rows, not found, part.new
                        )
                        found.append((drawn, answer(drawn)))
                    given = {name: values[name] for name in self._shared if name in values}
                chunks.append(_joined(found))
        return _stacked(chunks)

    @property
    def _tied(self) -> bool:
        """Whether a latent that is summed out lies outside of rows, so that all of them tell of it."""
        return not set(self._shared).isdisjoint(self.structure.marginalized)

    @property
    def _part_size(self) -> int:
        """The rows in a part."""
        size = self._usual.size or 1
        if self._own:
            return size
        num_rows = self.job.source.num_rows or 1
        if self._tied or not self._rows:
            return num_rows
        return min(num_rows, max(size, ELEMENTS_AT_ONCE * size // self._elements(size)))

    def _elements(self, size: int) -> int:
        """The numbers in one draw on so many rows."""
        return max(1, elements(self.structure) * size // (self._usual.size or 1))

    def _parts(self) -> Iterator[Part]:
        if self._own:
            yield from self._subsamples(self._own)
            return
        source, size = self.job.source, self._part_size
        if size >= (source.num_rows or 1):
            yield Part(self.job.pair(source.whole()), nullcontext())
            return
        for rows in torch.arange(source.num_rows or 1).split(size):
            batch = source.at(rows)
            yield Part(self.job.pair(batch), self.job.handler(batch))

    def _subsamples(self, plate: Plate) -> Iterator[Part]:
        """All rows of a plate that the model subsamples, as many at a time as it takes."""
        pair, last = self.job.pair(self._usual), plate.full_size - plate.size
        for start in range(0, plate.full_size, plate.size):
            rows = torch.arange(min(start, last), min(start, last) + plate.size)
            handler = DataPlate({plate.name}, plate.full_size, rows, plate.size)
            yield Part(pair, handler, min(plate.size, plate.full_size - start))


def _posterior_draws(structure: Structure, pair: Pair, num_draws: int, given: Draws) -> Draws:
    draw = Held(structure, given) if given else draw_plainly
    return draw_latents(structure, pair, num_draws, draw)


def _joined(parts: Sequence[tuple[Drawn, Mapping[str, Draws]]]) -> Groups:
    """One chunk of draws on all rows."""
    joined: Groups = {}
    for drawn, groups in parts:
        for group, values in groups.items():
            own = joined.setdefault(group, {})
            for name, value in values.items():
                site = drawn.structure.sites.get(name)
                if site is None:
                    own[name] = own[name] + value if name in own else value
                    continue
                rows = [i for i, plate in enumerate(site.plates, 1) if plate in drawn.rows]
                if name not in own or rows:
                    value = drawn.without_repeats(value, site.plates)
                    own[name] = torch.cat([own[name], value], rows[0]) if name in own else value
    return joined


def _stacked(chunks: Sequence[Groups]) -> Groups:
    """All chunks of draws."""
    return {
        group: {name: torch.cat([chunk[group][name] for chunk in chunks]) for name in values}
        for group, values in chunks[0].items()
    }
