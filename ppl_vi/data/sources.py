"""Turn the `data` argument of `fit` into batches of positional and keyword arguments."""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ppl_vi.data.arguments import Device, as_arguments, batch_arguments, number_array
from ppl_vi.data.orders import shuffled_rows
from ppl_vi.errors import DataError
from ppl_vi.program.row_draws import Part
from ppl_vi.ranks.group import ALONE, Ranks

__all__ = ["DEFAULT_BATCH_SIZE", "Batch", "DataSource", "data_source"]

DEFAULT_BATCH_SIZE = 256
"""Rows in a batch of a `Dataset` for which no `batch_size` is given."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of one call of the model and the guide, and the rows they hold.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        rows: Row numbers in the whole data set, `[size]`; None when they are unknown.
        size: Number of rows in this batch; None when the data have no rows.
        part: Where its rows stand among those of all processes that share the batch, if several do.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Tensor | None
    size: int | None
    part: Part | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the arguments, and the row numbers and their places last."""
        leaves = [
            leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)
        ]
        places = () if self.part is None else (self.part.places,)
        return tuple(leaves) if self.rows is None else (*leaves, self.rows, *places)

    @property
    def own(self) -> int:
        """How many rows count: a process that has none of a batch has borrowed one."""
        return self.part.own if self.part else self.size or 1


class DataSource(ABC):
    """A data set that can be read whole, in part, in shuffled batches or in order.

    Reading by `whole`, `head` or `sequence` leaves torch's global random state as it was, unless
    the user's own `Dataset` draws from it.

    Args:
        num_rows: Number of rows N of the whole data set; None when the data have no rows.
        batch_size: Rows in a batch of `epoch` and `sequence`; None for all rows.

    Attributes:
        num_rows: N, as given.
        batched: Whether `epoch` gives anything else than the one whole batch.
        asked: Rows in a batch, as given.
        in_parts: Whether batches are parts of one whole, all of which are looked at in each step.
        may_be_parted: Whether nobody asked for batches of some size.
        by_rows: Whether batches are rows of tensors in memory, told by their numbers alone.
        ranks: The processes that fit these data together.
        others: Rows of the data set that other processes have.
    """

    by_rows: bool = False
    divisible: ClassVar[bool] = True
    in_parts = False
    may_be_parted = False
    ranks: Ranks = ALONE
    others = 0

    def __init__(self, num_rows: int | None, batch_size: int | None) -> None:
        self.num_rows, self.asked = num_rows, batch_size
        self._batch_size = min(batch_size or sys.maxsize, num_rows or 1)
        self.batched = self._batch_size < (num_rows or 1)

    @abstractmethod
    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        """One batch for each tensor of row numbers."""

    def parted(self, rows: int) -> DataSource:
        """The same data in parts of so many rows, in order, that are one whole together."""
        parts = copy.copy(self)
        parts._batch_size = min(rows, self.num_rows or 1)
        parts.batched = parts.in_parts = True
        return parts

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """Those of the user's own that the order of a pass comes from."""
        return ()

    @property
    def batch_size(self) -> int | None:
        """Rows in a batch, where ``data_source`` is to be told of it."""
        return self._batch_size if self.batched else None

    @property
    def partial(self) -> bool:
        """Whether a batch may have fewer rows than there are in all."""
        return self.batched

    @property
    def seen(self) -> DataSource:
        """What all processes see alike before the first step."""
        return self

    @property
    def alone(self) -> DataSource:
        """What this process asks its questions of after the fit."""
        if self.ranks is ALONE:
            return self
        source = copy.copy(self)
        source.ranks = ALONE
        return source

    @property
    def rows_device(self) -> torch.device:
        """Where row numbers are."""
        return torch.device("cpu")

    def whole(self) -> Batch:
        """All rows, in data order, as one batch (for a `Dataset` all of it is held in memory)."""
        return self._between(0, self.num_rows or 0)

    def head(self, size: int) -> Batch:
        """The first `size` rows as one batch; all rows when there are fewer."""
        return self._between(0, min(size, self.num_rows or 0))

    def _between(self, start: int, stop: int) -> Batch:
        return self.at(torch.arange(start, stop, device=self.rows_device))

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass over the rows, shuffled when there are several batches, the last one ragged.

        Args:
            generator: Draws the order, at the call; torch's global state when None. A `DataLoader`
                ignores it, since it keeps its own sampler.
        """
        return self._read(self.chunks(generator, shuffled=True))

    def sequence(self) -> Iterator[Batch]:
        """One pass over all rows in data order, in batches of the same size, the last ragged."""
        return self._read(self.chunks())

    def chunks(
        self, generator: torch.Generator | None = None, shuffled: bool = False
    ) -> Iterator[Tensor]:
        """The row numbers of each batch of `epoch` (shuffled) or of `sequence`."""
        num_rows, size, place = self.num_rows or 0, self._batch_size, self.rows_device
        if shuffled and self.batched:
            return shuffled_rows(num_rows, size, generator, place)
        starts = range(0, max(1, num_rows), size)
        return (torch.arange(s, min(s + size, num_rows), device=place) for s in starts)

    def sizes(self) -> dict[int, int]:
        """How many batches of `sequence` have how many rows."""
        if self.num_rows is None:
            return {0: 1}
        many, rest = divmod(self.num_rows, self._batch_size)
        return {self._batch_size: many, rest: 1} if rest else {self._batch_size: many}

    def at(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        return next(self._read([rows]))  # a list: no more will be asked for


def data_source(data: Any, batch_size: int | None = None, device: Device = None) -> DataSource:
    """Read `data` as the arguments of a model, whole or in batches.

    A tensor, array, pandas object or list of numbers is one positional argument, a tuple is
    positional arguments, a dict is keyword arguments, and None is no argument. Floating arrays and
    lists take torch's default dtype; tensors keep theirs, and anything else passes unchanged (in a
    tuple or dict a list of integers too, which may be sizes of layers). The first tensor
    with dimensions gives the number of rows N; tensors of that length are rows, others pass whole.

    An item of a map-style `Dataset` is read in the same way and collated by `default_collate`; its
    batches have `DEFAULT_BATCH_SIZE` rows unless `batch_size` is given. A `DataLoader` keeps its
    own batches and sampler, so their row numbers are unknown; N is the length of its data set.

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
        return _LoaderSource(data, device)
    # A subclass may change what an item is; the class itself only indexes its tensors.
    if type(data) is TensorDataset:
        return _TensorSource(data.tensors, batch_size or DEFAULT_BATCH_SIZE, device)
    if isinstance(data, Dataset):
        return _DatasetSource(data, batch_size or DEFAULT_BATCH_SIZE, device)
    if isinstance(data, list):
        data = number_array(data)
    return _TensorSource(data, batch_size, device)


class _TensorSource(DataSource):
    """Tensors in memory, with other arguments that are passed whole."""

    by_rows = True

    def __init__(self, data: Any, batch_size: int | None, device: Device) -> None:
        self._args, self._kwargs = as_arguments(data, "data", device)
        first = _first_tensor(self._args, self._kwargs)
        if first is None and batch_size is not None:
            raise DataError(
                f"batch_size={batch_size} needs rows, but no leaf of `data` is a tensor or array "
                "with a first dimension. Pass the data as tensors, or leave `batch_size` out."
            )
        super().__init__(None if first is None else _some_rows(len(first)), batch_size)
        self._device = torch.device("cpu") if first is None else first.device
        self.may_be_parted = first is not None and batch_size is None

    @property
    def rows_device(self) -> torch.device:
        return self._device

    def sequence(self) -> Iterator[Batch]:
        size, num_rows = self._batch_size, self.num_rows or 1
        starts = range(0, num_rows, size)
        return (self._between(start, min(start + size, num_rows)) for start in starts)

    def _between(self, start: int, stop: int) -> Batch:
        """Views of the rows: what is on disk stays there until it is used."""
        if self.num_rows is None:
            return Batch(self._args, self._kwargs, None, None)
        rows = torch.arange(start, stop, device=self._device)
        if stop - start == self.num_rows:
            return Batch(self._args, self._kwargs, rows, self.num_rows)
        return self._selected(rows, lambda leaf: leaf[start:stop])

    def _read(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        return map(self._take, chunks)

    def _take(self, rows: Tensor) -> Batch:
        if self.num_rows is None or len(rows) == self.num_rows:  # in data order, as the only batch
            return self.whole()
        return self._selected(rows, lambda leaf: leaf.index_select(0, rows.to(leaf.device)))

    def _selected(self, rows: Tensor, select: Callable[[Tensor], Tensor]) -> Batch:
        def of(leaf: Any) -> Any:
            return select(leaf) if _has_rows(leaf) and len(leaf) == self.num_rows else leaf

        kwargs = {name: of(leaf) for name, leaf in self._kwargs.items()}
        return Batch(tuple(map(of, self._args)), kwargs, rows, len(rows))


class _DatasetSource(DataSource):
    """A map-style `Dataset`; `template` is a `DataLoader` that lends its settings."""

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        device: Device,
        template: DataLoader[Any] | None = None,
    ) -> None:
        super().__init__(_dataset_length(dataset), batch_size)
        self._dataset, self._device = dataset, device
        self._collate = None if template is None else template.collate_fn
        names = ("num_workers", "worker_init_fn", "multiprocessing_context")
        self._workers = (
            {} if template is None else {name: getattr(template, name) for name in names}
        )

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
            first = _first_tensor(args, kwargs)
            if first is not None and len(first) != len(rows):
                raise DataError(
                    f"{len(rows)} rows were collated into a tensor of shape {tuple(first.shape)}. "
                    "Let collate_fn keep every row and put rows in the first dimension."
                )
            place = self._device if first is None else first.device
            yield Batch(args, kwargs, rows.to(place), len(rows))


class _LoaderSource(DataSource):
    """A user's `DataLoader`; what is read in data order is read past its sampler."""

    divisible = False

    def __init__(self, loader: DataLoader[Any], device: Device) -> None:
        batch_size = getattr(loader.batch_sampler, "batch_size", DEFAULT_BATCH_SIZE)
        self._loader, self._device = loader, device
        self._in_order = _DatasetSource(loader.dataset, batch_size, device, template=loader)
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
        return (replace(batch, rows=None) for batch in self._in_order._read(chunks))

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
            first = _first_tensor(args, kwargs)
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


def _check_device(device: Device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as cause:
        raise DataError(
            f"device={device!r} is not to be had here (torch says: "
            f"{str(cause).splitlines()[0].rstrip('.')}). Leave `device` out to compute where the data "
            "are, or name one that torch finds, such as 'cpu'."
        ) from cause


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor with dimensions, whose length is the number of rows."""
    return next((leaf for leaf in (*args, *kwargs.values()) if _has_rows(leaf)), None)


def _dataset_length(dataset: Dataset[Any]) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{type(dataset).__name__} has no known number of rows, which scales the bound. Use a "
            "Dataset that has __len__ and __getitem__."
        )
    return _some_rows(len(dataset))


def _some_rows(num_rows: int) -> int:
    if num_rows == 0:
        raise DataError("The data have no rows: the first dimension is 0. Pass at least one row.")
    return num_rows


def _positive_integer(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise DataError(
            f"`batch_size` must be a positive integer or None, but it is {batch_size!r}. Give the "
            "number of rows in a batch."
        )
    return int(batch_size)
