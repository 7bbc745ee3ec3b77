"""Arrays that stay where they are stored, and are read rows by rows: Zarr, HDF5, memory maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class StoredArray:
    """An array on disk, of which rows are read as tensors.

    Floating-point numbers take torch's default dtype, and rows are checked as they are read.

    Args:
        array: has ``shape`` and ``dtype``; slices of it, and rows by sorted numbers, are NumPy arrays.
        name: for messages.
        device: where tensors are put.
    """

    def __init__(self, array: Any, name: str, device: torch.device | str | None) -> None:
        self._array, self._name = array, name
        self.device = torch.device("cpu" if device is None else device)
        self.ndim: int = len(array.shape)
        self.between(0, 0)  # what is no array of numbers is refused at once

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def between(self, start: int, stop: int) -> Tensor:
        """Rows from one on to another."""
        return self._tensor(self._array[start:stop])

    def at(self, rows: Tensor) -> Tensor:
        """The rows of these numbers."""
        numbers, places = np.unique(rows.cpu().numpy(), return_inverse=True)
        # Zarr has its own way to take whole rows.
        read = getattr(self._array, "oindex", self._array)[numbers]
        return self._tensor(np.asarray(read)[places])

    def _tensor(self, read: Any) -> Tensor:
        from ppl_vi.data.arguments import checked_tensor

        return checked_tensor(np.asarray(read), self._name, self.device)


def is_stored(leaf: Any) -> bool:
    """Whether an object is an array that NumPy would have to read first."""
    if isinstance(leaf, (np.ndarray, np.generic, Tensor)):
        return False
    return all(hasattr(leaf, name) for name in ("shape", "dtype", "__getitem__"))
