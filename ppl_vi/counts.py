"""Numbers of steps, draws, particles and parts, as a user gives them."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def check_count(name: str, count: Any, least: int = 1) -> None:
    """Raise a ValueError unless the count is an integer, and as many as that; NumPy's are integers too.

    Args:
        name: of the argument.
        count: as it was given.
        least: the smallest that means something.

    Raises:
        ValueError: it is no integer, or less.
    """
    if isinstance(count, bool) or not isinstance(count, Integral) or count < least:
        wanted = "a positive integer" if least == 1 else f"an integer of {least} or more"
        raise ValueError(f"{name} must be {wanted}, not {count!r}.")
