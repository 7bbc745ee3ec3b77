"""What models ask of their arguments and their data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_vi.errors import DataError, ModelError


def count(name: str, value: Any) -> int:
    """An integer that is 1 or more.

    Raises:
        ModelError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} must be an integer, 1 or more, not {value!r}.")
    return value


def positive(name: str, value: Any) -> float:
    """A positive finite number.

    Raises:
        ModelError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ModelError(f"{name} must be a positive number, not {value!r}.")
    return float(value)


def one_of(name: str, value: Any, words: tuple[str, ...]) -> Any:
    """One of these words.

    Raises:
        ModelError: it is none.
    """
    if value not in words:
        raise ModelError(f"{name} must be {' or '.join(map(repr, words))}, not {value!r}.")
    return value


def check_shape(name: str, value: Any, *shapes: str, integer: bool = False) -> None:
    """Raise a DataError unless a tensor has rows, and as many dimensions as one of these shapes.

    Args:
        name: of the model and the argument.
        value: the argument.
        shapes: as they are written: ``"[N, D]"``.
        integer: whether it must be integers; else floating-point.
    """
    kind = "integers" if integer else "floating-point"
    expected = f"{name} must be {kind} {' or '.join(shapes)}"
    if not isinstance(value, Tensor):
        raise DataError(f"{expected}, not {type(value).__name__}. Pass a torch tensor.")
    fits = value.dim() in [shape.count(",") + 1 for shape in shapes]
    is_integer = not (value.is_floating_point() or value.is_complex())
    if not fits or is_integer != integer:
        found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        own = name.split()[-1]
        remedy = f" Pass {own}.{'long()' if integer else 'double()'}." if fits else ""
        if value.dim() == 1 and "[N, D]" in shapes:
            remedy = f" Pass one column as {own}[:, None]."
        raise DataError(f"{expected}, not {found}.{remedy}")
    if not value.numel():
        raise DataError(f"{name} has no entries: {list(value.shape)}. Pass at least one row.")


def check_lengths(name: str, **tensors: Tensor) -> None:
    """Raise a DataError unless the tensors have as many rows as each other."""
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{key} {len(tensor)}" for key, tensor in tensors.items())
        raise DataError(f"{name}: arguments must have as many rows as each other, not {found}.")


def deviation(rows: Tensor) -> Tensor:
    """``[*event]``: standard deviations over the rows; one in place of zero."""
    spread = rows.detach().std(0, correction=0)
    return torch.where(spread > 0, spread, torch.ones_like(spread))
