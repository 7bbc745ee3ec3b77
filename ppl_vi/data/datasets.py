"""Data sets that are read item by item, by torch's ``DataLoader``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ppl_vi.data.arguments import Device, batch_arguments
from ppl_vi.data.batches import Batch, DataSource, checked_count, first_tensor
from ppl_vi.errors import DataError

DEFAULT_BATCH_SIZE = 256
"""Rows in a batch of a `Dataset` for which no `batch_size` is given."""


class MapSource(DataSource):
    """A map-style `Dataset`; `template` is a `DataLoader` that lends its settings."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        device: Device,
        template: DataLoader[Any] | None = None,
    ) -> None:
        super().__init__(_dataset_length(dataset), batch_size)
        self._dataset, self._device = dataset, device
        self._collate = None if template is None else template.collate_fn
        self._workers = _workers_of(template)

    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        asked: deque[Tensor] = deque()  # workers are asked for some batches ahead

        def row_numbers() -> Iterator[list[int]]:
            for rows in chunks:
                asked.append(rows)
                yield rows.tolist()

        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=row_numbers(),
            collate_fn=self._collate,
            # Without its own generator, each pass would draw a seed from torch's global state.
            generator=torch.Generator(),
            # One batch isn't worth starting worker processes.
            **({} if isinstance(chunks, list) else self._workers),
        )
        for items in loader:
            rows = asked.popleft()
            args, kwargs = batch_arguments(items, self._device)
            first = first_tensor(args, kwargs)
            if first is not None and len(first) != len(rows):
                raise DataError(
                    f"{len(rows)} rows were collated into a tensor of shape "
                    f"{tuple(getattr(first, 'shape', ()))}. "
                    "Let collate_fn keep every row and put rows in the first dimension."
                )
            place = self._device if first is None else first.device
            yield Batch(args, kwargs, rows.to(place), len(rows))


class LoaderSource(DataSource):
    """A user's `DataLoader`; what is read in data order is read past its sampler."""

    divisible = False

    def __init__(self, loader: DataLoader[Any], device: Device) -> None:
        batch_size = getattr(loader.batch_sampler, "batch_size", DEFAULT_BATCH_SIZE)
        self._loader, self._device = loader, device
        self._in_order = items_source(loader.dataset, batch_size, device, template=loader)
        super().__init__(self._in_order.num_rows, batch_size)
        if loader.batch_sampler is None:
            raise DataError(
                "The DataLoader has batch_size=None, so the number of rows in its data set is "
                "unknown. Give it a batch_size or a batch_sampler."
            )
        # Even one batch may be shuffled, or leave rows out: that is for the sampler to say.
        self.batched = True

    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        # Without row numbers, as in `epoch`: a guide must see the same in training and after it.
        return map(_without_numbers, self._in_order._read(chunks))

    def sequence(self) -> Iterator[Batch]:
        return map(_without_numbers, self._in_order.sequence())

    def _between(self, start: int, stop: int) -> Batch:
        return _without_numbers(self._in_order._between(start, stop))

    @property
    def batch_size(self) -> int | None:
        return None

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        loader, samplers = self._loader, (self._loader.batch_sampler, self._loader.sampler)
        holders = (loader, *samplers, *(getattr(held, "sampler", None) for held in samplers))
        found = [getattr(holder, "generator", None) for holder in holders]
        return tuple({id(own): own for own in found if isinstance(own, torch.Generator)}.values())

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        empty = True
        for items in self._loader:
            args, kwargs = batch_arguments(items, self._device)
            first = first_tensor(args, kwargs)
            if first is None:
                raise DataError(
                    "A batch of the DataLoader has no tensor with a first dimension, so its number "
                    "of rows is unknown. Let collate_fn return tensors."
                )
            empty = False
            yield Batch(args, kwargs, None, len(first))
        if empty:
            raise DataError(
                f"The DataLoader gave no batch from {self.num_rows} rows. Use drop_last=False or a "
                "smaller batch_size."
            )


class IterableSource(DataSource):
    """An ``IterableDataset``, which says itself in what order its rows come."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        device: Device,
        template: DataLoader[Any] | None = None,
    ) -> None:
        super().__init__(_dataset_length(dataset), batch_size)
        self._dataset, self._device, self._template = dataset, device, template

    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        return (self._between(0, len(rows)) for rows in chunks)  # the first rows: none has a number

    def _between(self, start: int, stop: int) -> Batch:
        return next(self._pass(stop - start))

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        return self.sequence()

    def sequence(self) -> Iterator[Batch]:
        found = 0
        for batch in self._pass(self._batch_size):
            found += batch.size or 0
            yield batch
        if found != self.num_rows:
            raise DataError(
                f"{type(self._dataset).__name__} has a length of {self.num_rows} rows but gave "
                f"{found}, so that the bound would be scaled wrongly. Let __len__ say how many rows "
                f"one pass has; with several workers, each has to give rows of its own."
            )

    def _pass(self, size: int) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_size=size,
            collate_fn=None if self._template is None else self._template.collate_fn,
            generator=torch.Generator(),
            **_workers_of(self._template),
        )
        for items in loader:
            args, kwargs = batch_arguments(items, self._device)
            first = first_tensor(args, kwargs)
            yield Batch(args, kwargs, None, size if first is None else len(first))


def _without_numbers(batch: Batch) -> Batch:
    return replace(batch, rows=None)


def is_dataset(data: Any) -> bool:
    """Whether data are items to be collated: a ``Dataset``, or what ``DataLoader`` reads alike."""
    return isinstance(data, Dataset) or hasattr(data, "__getitems__")


def items_source(
    dataset: Any, batch_size: int, device: Device, template: DataLoader[Any] | None = None
) -> MapSource | IterableSource:
    """The items of a data set, map-style or iterable."""
    kind = IterableSource if isinstance(dataset, IterableDataset) else MapSource
    return kind(dataset, batch_size, device, template)


def _workers_of(template: DataLoader[Any] | None) -> dict[str, Any]:
    names = ("num_workers", "worker_init_fn", "multiprocessing_context")
    return {} if template is None else {name: getattr(template, name) for name in names}


def _dataset_length(dataset: Any) -> int:
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{type(dataset).__name__} has no known number of rows, which scales the bound. Give it a "
            "__len__ that says how many rows one pass has, or use a Dataset that has __len__ and "
            "__getitem__."
        )
    return checked_count(len(dataset))
