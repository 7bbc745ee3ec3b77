"""Tensors, arrays and tables as the arguments of a program."""

import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vi.data.stored import StoredArray, is_stored
from ppl_vi.errors import DataError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Device = torch.device | str | None

_PIECE = 2**22
"""Numbers that are looked at together."""


def as_arguments(data: Any, name: str, device: Device) -> Arguments:
    """Positional and keyword arguments, with arrays made tensors; `name` is for messages."""
    if data is None:
        return (), {}
    if isinstance(data, tuple):
        leaves = {f"{name}[{i}]": leaf for i, leaf in enumerate(data)}
        return tuple(_leaves(leaves, device).values()), {}
    if isinstance(data, Mapping):
        leaves = {f"{name}[{key!r}]": leaf for key, leaf in data.items()}
        return (), dict(zip(data, _leaves(leaves, device).values(), strict=True))
    return tuple(_leaves({name: data}, device).values()), {}


def _leaves(leaves: Mapping[str, Any], device: Device) -> dict[str, Any]:
    made = {name: _leaf(leaf, name, device) for name, leaf in leaves.items()}
    devices = {name: leaf.device for name, leaf in made.items() if isinstance(leaf, Tensor)}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"`{name}` on {place}" for name, place in devices.items())
        raise DataError(
            f"The data are on several devices: {listed}. Pass device= to put them all on one."
        )
    return made


def batch_arguments(items: Any, device: Device) -> Arguments:
    """The arguments in a collated batch; `default_collate` makes lists of tuples."""
    return as_arguments(tuple(items) if isinstance(items, list) else items, "batch", device)


def _leaf(leaf: Any, name: str, device: Device) -> Any:
    """A checked tensor of numbers, as a list, array, tensor or table; anything else unchanged."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(leaf, pandas.Series | pandas.DataFrame):
        leaf = leaf.to_numpy()
    if isinstance(leaf, list) and _only_numbers(leaf) and not _only_integers(leaf):
        leaf = number_array(leaf, name)  # integers may be sizes of layers, or of plates
    if _stays_on_disk(leaf):
        return StoredArray(leaf, name, device)
    if isinstance(leaf, np.ndarray):
        leaf = _array_to_tensor(leaf, name)
    return checked(leaf, name, device) if isinstance(leaf, Tensor) else leaf


def checked_tensor(array: np.ndarray[Any, Any], name: str, device: Device) -> Tensor:
    """A checked tensor of an array's numbers; the name is for messages."""
    return checked(_array_to_tensor(array, name), name, device)


def checked(leaf: Tensor, name: str, device: Device) -> Tensor:
    """The tensor, without NaN, where it belongs."""
    if leaf.device.type == "meta":
        raise DataError(f"`{name}` is on the device meta, which keeps no numbers. Pass real data.")
    _check_numbers(leaf, name)
    return leaf.to(device)


def _check_numbers(leaf: Tensor, name: str) -> None:
    """Raise DataError for NaN, looked for in pieces, as the whole may be larger than memory."""
    if not leaf.is_floating_point() and not leaf.is_complex():
        return
    count, first, before = 0, list[int](), 0
    rows = max(1, _PIECE * len(leaf) // max(1, leaf.numel())) if leaf.ndim else 1
    for piece in leaf.split(rows) if leaf.ndim else (leaf,):
        if not piece.isfinite().all():  # faster than to look for NaN itself
            nan = piece.isnan()
            if count == 0 and nan.any():
                first = nan.nonzero()[0].tolist()
                first[:1] = [before + number for number in first[:1]]
            count += int(nan.sum())
        before += rows
    if count:
        raise DataError(
            f"`{name}` has {count} NaN, the first at index {first}. "
            "Drop or impute those rows, or fill them with a number and mask them in the model."
        )


def _array_to_tensor(array: np.ndarray[Any, Any], name: str) -> Tensor:
    kind, size = array.dtype.kind, array.itemsize
    if kind not in "biuf" or isinstance(array, np.ma.MaskedArray):
        found = f"dtype {array.dtype}" if kind not in "biuf" else "a mask"
        raise DataError(
            f"`{name}` must be plain real numbers, but it has {found}. Select the numeric "
            "columns, encode categories and dates as numbers, and fill masked entries."
        )
    dtype = array.dtype.newbyteorder("=")
    # torch has no floats of more than 64 bits, and can't index unsigned integers of more than 8.
    if (kind == "f" and size > 8) or (kind == "u" and size > 1):
        dtype = np.dtype(np.float64 if kind == "f" else np.int64)
    if isinstance(array, np.memmap) and _is_mapped(array):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says of each that it could be written to
            tensor = torch.from_numpy(array)  # a copy would take the memory that the file saves
    else:
        tensor = torch.from_numpy(np.array(array, dtype, order="C"))
    return tensor.to(torch.get_default_dtype()) if kind == "f" else tensor


def _stays_on_disk(leaf: Any) -> bool:
    """Whether to read an array rows by rows: a memory map too, unless it is a tensor as it is."""
    if isinstance(leaf, np.memmap):
        return leaf.ndim > 0 and leaf.dtype.kind in "biuf" and not _is_mapped(leaf)
    return is_stored(leaf) and len(leaf.shape) > 0


def _is_mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether torch can take an array's memory for a tensor's, in the dtype that it should have."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not array.dtype.isnative or not array.flags.c_contiguous or (kind == "u" and size > 1):
        return False
    default = torch.empty(0, dtype=torch.get_default_dtype()).numpy().dtype
    return bool(kind != "f" or array.dtype == default)


def number_array(values: list[Any], name: str = "data") -> np.ndarray[Any, Any]:
    """A list of numbers, or of equally long lists of them, as an array.

    Args:
        values: the list.
        name: for messages.

    Raises:
        DataError: it is anything else.
    """
    if _only_numbers(values):
        with suppress(ValueError):  # nested lists of different lengths
            return np.asarray(values)
    raise DataError(
        f"A list given as `{name}` must be numbers, or equally long lists of numbers. Pass a tuple "
        "for several arguments, or a dict to name them."
    )


def _only_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_only_numbers, value))
    return isinstance(value, Real | np.bool_)


def _only_integers(value: Any) -> bool:
    return (
        all(map(_only_integers, value)) if isinstance(value, list) else isinstance(value, Integral)
    )
