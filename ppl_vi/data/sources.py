"""Turn the `data` argument of `fit` into batches of positional and keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ppl_vi.data.arguments import Device, as_arguments, number_array
from ppl_vi.data.batches import Batch, DataSource, checked_count, first_tensor, has_rows
from ppl_vi.data.datasets import DEFAULT_BATCH_SIZE, LoaderSource, is_dataset, items_source
from ppl_vi.data.stored import StoredArray
from ppl_vi.errors import DataError

__all__ = ["DEFAULT_BATCH_SIZE", "Batch", "DataSource", "data_source"]


def data_source(data: Any, batch_size: int | None = None, device: Device = None) -> DataSource:
    """Read `data` as the arguments of a model, whole or in batches.

    A tensor, array, pandas object or list of numbers is one positional argument, a tuple is
    positional arguments, a dict is keyword arguments, and None is no argument. Floating arrays and
    lists take torch's default dtype; tensors keep theirs, and anything else passes unchanged (in a
    tuple or dict a list of integers too, which may be sizes of layers). The first tensor
    with dimensions gives the number of rows N; tensors of that length are rows, others pass whole.

    An array on disk (a `numpy.memmap`, or anything with `shape`, `dtype` and slices, such as a Zarr
    array or an HDF5 data set) stays there, and rows are read as they are needed.

    An item of a map-style `Dataset`, or of any object with `__getitems__`, is read in the same way
    and collated by `default_collate`; its batches have `DEFAULT_BATCH_SIZE` rows unless `batch_size`
    is given. An `IterableDataset` has to have a `__len__`; it keeps its own order, so that row
    numbers are unknown. A `DataLoader` keeps its own batches and sampler, so their row numbers are
    unknown; N is the length of its data set.

    Args:
        data: The data.
        batch_size: Rows in a batch. When None, tensors and arrays are one whole batch.
        device: Where to put the tensors; None leaves them where they are.

    Raises:
        DataError: If an array isn't numeric, a floating tensor contains NaN (a `Dataset` or
            `DataLoader` is checked batch by batch, as it is read), there are no rows to divide into
            batches, N is zero or unknown, or `batch_size` isn't a positive integer.

    Example:
        >>> source = data_source({"x": torch.randn(10, 2), "prior_scale": 2.0}, batch_size=4)
        >>> source.num_rows, source.batched
        (10, True)
        >>> [(batch.size, tuple(batch.kwargs["x"].shape)) for batch in source.epoch()]
        [(4, (4, 2)), (4, (4, 2)), (2, (2, 2))]
        >>> source.head(3).rows
        tensor([0, 1, 2])
    """
    if isinstance(data, DataSource):  # of a fit before
        return data
    if batch_size is not None:
        batch_size = _positive_integer(batch_size)
    _check_device(device)
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise DataError(
                "`batch_size` was given together with a DataLoader, which has its own. Set it in "
                "the DataLoader, or pass the Dataset itself."
            )
        return LoaderSource(data, device)
    # A subclass may change what an item is; the class itself only indexes its tensors.
    if type(data) is TensorDataset or is_dataset(data):
        source = (
            _TensorSource(data.tensors, batch_size or DEFAULT_BATCH_SIZE, device)
            if type(data) is TensorDataset
            else items_source(data, batch_size or DEFAULT_BATCH_SIZE, device)
        )
        source.may_be_parted = batch_size is None
        return source
    if isinstance(data, list):
        data = number_array(data)
    return _TensorSource(data, batch_size, device)


class _TensorSource(DataSource):
    """Tensors in memory and arrays on disk, with other arguments that are passed whole."""

    def __init__(self, data: Any, batch_size: int | None, device: Device) -> None:
        self._args, self._kwargs = as_arguments(data, "data", device)
        first = first_tensor(self._args, self._kwargs)
        if first is None and batch_size is not None:
            raise DataError(
                f"batch_size={batch_size} needs rows, but no leaf of `data` is a tensor or array "
                "with a first dimension. Pass the data as tensors, or leave `batch_size` out."
            )
        super().__init__(None if first is None else checked_count(len(first)), batch_size)
        self._device = torch.device("cpu") if first is None else first.device
        self.may_be_parted = first is not None and batch_size is None
        stored = [isinstance(leaf, StoredArray) for leaf in (*self._args, *self._kwargs.values())]
        self.by_rows = not any(stored)
        self._all: Batch | None = None

    @property
    def rows_device(self) -> torch.device:
        return self._device

    def sequence(self) -> Iterator[Batch]:
        size, num_rows = self._batch_size, self.num_rows or 1
        starts = range(0, num_rows, size)
        return (self._between(start, min(start + size, num_rows)) for start in starts)

    def whole(self) -> Batch:
        if self.num_rows is None:
            return Batch(self._args, self._kwargs, None, None)
        if self._all is None:
            rows = torch.arange(self.num_rows, device=self._device)
            if self.by_rows:
                return Batch(self._args, self._kwargs, rows, self.num_rows)
            stop = self.num_rows  # read but once, as nobody asked for less
            self._all = self._selected(rows, lambda each: each, lambda each: each.between(0, stop))
        return self._all

    def _between(self, start: int, stop: int) -> Batch:
        """Views of the rows: what is on disk stays there until it is used."""
        if self.num_rows is None or stop - start == self.num_rows:
            return self.whole()
        rows = torch.arange(start, stop, device=self._device)
        return self._selected(
            rows, lambda tensor: tensor[start:stop], lambda stored: stored.between(start, stop)
        )

    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        return map(self._take, chunks)

    def _take(self, rows: Tensor) -> Batch:
        if self.num_rows is None or len(rows) == self.num_rows:  # in data order, as the only batch
            return self.whole()
        return self._selected(
            rows,
            lambda tensor: tensor.index_select(0, rows.to(tensor.device)),
            lambda stored: stored.at(rows),
        )

    def _selected(
        self,
        rows: Tensor,
        of_tensor: Callable[[Tensor], Tensor],
        of_stored: Callable[[StoredArray], Tensor],
    ) -> Batch:
        def of(leaf: Any) -> Any:
            own = has_rows(leaf) and len(leaf) == self.num_rows
            if isinstance(leaf, StoredArray):
                return of_stored(leaf) if own else leaf.between(0, len(leaf))
            return of_tensor(leaf) if own else leaf

        kwargs = {name: of(leaf) for name, leaf in self._kwargs.items()}
        return Batch(tuple(map(of, self._args)), kwargs, rows, len(rows))


def _check_device(device: Device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as cause:
        raise DataError(
            f"device={device!r} is not to be had here (torch says: "
            f"{str(cause).splitlines()[0].rstrip('.')}). Leave `device` out to compute where the data "
            "are, or name one that torch finds, such as 'cpu'."
        ) from cause


def _positive_integer(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise DataError(
            f"`batch_size` must be a positive integer or None, but it is {batch_size!r}. Give the "
            "number of rows in a batch."
        )
    return int(batch_size)
