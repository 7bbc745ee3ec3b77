"""One model, guide and data set, checked, and the handlers that every call of them runs under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.errors import DataError, GuideError, ModelError
from ppl_vi.evaluation import WeightedPair
from ppl_vi.memory import known_about
from ppl_vi.preparation import forget, shapes_of, structure_of
from ppl_vi.program import (
    Arguments,
    DataPlate,
    Pair,
    Structure,
    find_data_plates,
    plate_dims,
    plates_over_rows,
)
from ppl_vi.ranks.group import Ranks

Program = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """A model, a guide and the batches of a data set.

    Attributes:
        model: the Pyro model.
        guide: the Pyro guide.
        source: the data.
        data_plates: names of the plates over the rows; empty where there is but one batch.
    """

    model: Program
    guide: Program
    source: DataSource
    data_plates: frozenset[str]

    def pair(self, batch: Batch) -> Pair:
        """The model and the guide with the batch's arguments."""
        return Pair(self.model, self.guide, batch.args, batch.kwargs)

    def usual_pair(self) -> Pair:
        """The pair with a batch of the usual size."""
        return self.pair(next(self.source.sequence()))

    def handler(self, batch: Batch) -> AbstractContextManager[Any]:
        """What makes the batch count for all rows."""
        if not self.data_plates or self.source.num_rows is None or batch.size is None:
            return nullcontext()
        handler: AbstractContextManager[Any] = DataPlate(
            self.data_plates, self.source.num_rows, batch.rows, batch.size, batch.part
        )
        return handler

    def weighted_pairs(self) -> Iterator[WeightedPair]:
        """The batches in order, each with its share of the rows; of several processes, this one's."""
        if self.source.others:
            raise DataError(
                f"this process has {self.source.num_rows} rows of its own, and others have "
                f"{self.source.others} (shard='given'): what all rows say together cannot be asked "
                f"of a part. Fit with shard='split'."
            )
        for batch in self.source.sequence():
            share = batch.own / (self.source.num_rows or 1)
            if batch.part is None:  # all processes have the same
                share /= self.ranks.size
            yield self.pair(batch), share, self.handler(batch)

    @property
    def ranks(self) -> Ranks:
        """The processes that share it."""
        return self.source.ranks

    @property
    def alone(self) -> Job:
        """The job as this process has it after the fit, by itself."""
        source = self.source.alone
        plates = self.data_plates if source.partial else frozenset[str]()
        return self if source is self.source else replace(self, source=source, data_plates=plates)

    def row_plates(self, structure: Structure) -> frozenset[str]:
        """The plates over the rows of the data: those of batches, else of observed sites, N long.

        A plate over columns may be as long: those over rows are shorter where there are fewer rows.
        """
        num_rows = self.source.num_rows or 0
        plates = self.data_plates or frozenset(
            plate
            for site in structure.of_kind("observed")
            for plate in structure.sites[site].plates
            if structure.plates[plate].size == num_rows
        )
        if self.data_plates or num_rows < 2 or not plates:
            return plates
        pair = self.usual_pair()
        known, asked = known_about(pair), ("row plates", shapes_of(pair))
        if asked not in known:
            fewer = self.source.head(num_rows - 1)
            arguments = Arguments(fewer.args, fewer.kwargs, num_rows - 1)
            known[asked] = plates_over_rows(self.model, arguments, plates)
        found: frozenset[str] = known[asked]
        return found

    @property
    def device(self) -> torch.device | None:
        """Where the data are; None where there are none, or where they are on several devices."""
        devices = {tensor.device for tensor in next(self.source.sequence()).tensors}
        return devices.pop() if len(devices) == 1 else None

    def check(self) -> Structure:
        """Inspect the pair on the shapes that batches have; this also creates all parameters.

        Raises:
            GuideError, ModelError, DataError: as ``inspect`` does; a GuideError also where the guide
                cannot follow the rows of a batch of another size.
        """
        forget(Pair(self.model, self.guide, (), {}))
        if not self.data_plates:
            return structure_of(self.pair(self.source.whole()))
        first, other = two_batches(self.source)
        if self.ranks.size > 1 and not self.source.batched:
            return self._structure_on(first, f"all rows but not the {first.size} of a process")
        with self.handler(first):
            structure = structure_of(self.pair(first))
        self._structure_on(other, f"a batch of {first.size} rows but not one of {other.size}")
        return structure

    def _structure_on(self, batch: Batch, fits: str) -> Structure:
        """The structure on a batch; or a GuideError that says what the guide fits."""
        try:
            with self.handler(batch):
                return structure_of(self.pair(batch))
        except GuideError as error:
            reason = str(error.__cause__ or error).splitlines()[0].split(". ")[0]
            raise GuideError(
                f"the guide fits {fits} ({reason}). Give the data plate the size of the whole data set "
                f"with subsample_size=len(batch), so that local parameters are indexed by row, or "
                f"compute them from the batch."
            ) from error


def two_batches(source: DataSource) -> tuple[Batch, Batch]:
    """A batch of the usual size and one of another size."""
    usual = next(source.sequence())
    size = usual.size or 1
    return usual, source.head(size - 1 if size > 1 else 2)


def data_plates_of(model: Program, source: DataSource, named: str | None) -> frozenset[str]:
    """The plates over the rows, found where data come in batches.

    Raises:
        ModelError: as ``find_data_plates`` does.
    """
    if not source.partial or source.num_rows is None:
        whole = source.whole()
        if named is not None and named not in plate_dims(model, whole.args, whole.kwargs):
            raise ModelError(f"data_plate: the model has no plate '{named}'. Correct the name.")
        return frozenset()
    one, other = (Arguments(b.args, b.kwargs, b.size or 0) for b in two_batches(source))
    return find_data_plates(model, (one, other), source.num_rows, named)
