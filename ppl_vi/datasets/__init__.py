"""Data sets for the demo and examples."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from ppl_vi.datasets.images import read_images

__all__ = ["old_faithful", "read_images"]


def old_faithful() -> Tensor:
    """Old Faithful: ``[272, 2]``, the length of an eruption and the wait for the next, in minutes.

    Example:
        >>> old_faithful().shape
        torch.Size([272, 2])

    Source: Azzalini and Bowman (1990).
    """
    with files(__package__).joinpath("faithful.csv").open() as lines:
        return torch.as_tensor(np.loadtxt(lines, delimiter=",", skiprows=1)).float()
