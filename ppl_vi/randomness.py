"""Random state: fork it, seed it, and give it back as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block on its own random state; torch's, NumPy's and Python's are restored after it.

    With ``seed=None`` the block starts from the current state, so what it draws repeats outside it.

    Args:
        seed: seeds all three generators inside the block.

    Example:
        >>> import torch
        >>> with forked_rng(seed=1):
        ...     inside = torch.rand(1)
        >>> with forked_rng(seed=1):
        ...     bool(torch.rand(1) == inside)
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                pyro.set_rng_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
