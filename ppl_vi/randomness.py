"""Random state: fork it, seed it, and give it back as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block on its own random state; torch's, NumPy's and Python's are restored after it.

    With ``seed=None`` the block starts from the current state, so what it draws repeats outside it.

    Args:
        seed: seeds all three generators inside the block.

    Raises:
        ValueError: the seed is none that all three take.

    Example:
        >>> import torch
        >>> with forked_rng(seed=1):
        ...     inside = torch.rand(1)
        >>> with forked_rng(seed=1):
        ...     bool(torch.rand(1) == inside)
        True
    """
    restore = _state()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        restore()


def checked_seed(seed: Any) -> int:
    """The seed as a Python number; a ValueError for one that not all generators take."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, not {seed!r}.")
    return int(seed)


def seed_all(seed: int) -> None:
    """Seed torch's, NumPy's and Python's generators.

    Where torch was built for no accelerator, its generator is seeded directly: ``torch.manual_seed``
    first writes down for three kinds of device where it was called from, which takes as long as a
    small program.

    Raises:
        ValueError: the seed is none that all three take.
    """
    seed = checked_seed(seed)
    if torch.accelerator.current_accelerator() is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def restored_on_error() -> Iterator[None]:
    """Restore the random state where a block raises; else what it drew stays drawn."""
    restore = _state()
    try:
        yield
    except BaseException:
        restore()
        raise


def random_state() -> dict[str, Any]:
    """The state of all generators of the process as plain values and tensors, for a file."""
    version, words, gauss = random.getstate()
    name, key, *rest = np.random.get_state(legacy=True)
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": on_devices,
        "numpy": [name, torch.from_numpy(np.asarray(key, dtype=np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }


def use_random_state(state: Mapping[str, Any]) -> None:
    """Go on from a state that ``random_state`` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _state() -> Callable[[], None]:
    """Gives a function that puts the random state back to where it is now."""
    python_state, numpy_state, state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(state)
        if on_devices:
            torch.cuda.set_rng_state_all(on_devices)

    return restore
