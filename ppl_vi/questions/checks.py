"""Checks of what a person names when asking a fitted model something."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint


def check_names(what: str, names: Iterable[str], known: Collection[str], kind: str) -> None:
    """Raise a ValueError for a name that is none of the known ones.

    Args:
        what: the question, for the message.
        names: what was asked about.
        known: what there is.
        kind: of the known ones, in words.
    """
    for name in names:
        if name not in known:
            listed = ", ".join(f"'{one}'" for one in known) or "none"
            raise ValueError(
                f"{what}: site '{name}' is not one of the {kind} ({listed}). Correct the name."
            )


def check_value(
    what: str,
    name: str,
    value: Any,
    shape: torch.Size,
    support: Constraint,
    several: bool = False,
) -> Tensor:
    """The value as a tensor, ``[*shape]``; where there may be several, ``[..., *shape]``.

    Raises:
        ValueError: it has another shape, or lies outside the support.
    """
    tensor = torch.as_tensor(value)
    found = tensor.shape[max(0, tensor.dim() - len(shape)) :] if several else tensor.shape
    if found != shape:
        raise ValueError(
            f"{what}: the value of site '{name}' has shape {tuple(tensor.shape)}, but the site has "
            f"{tuple(shape)}. Give one number for each element of its plates and its event."
        )
    if not support.check(tensor).all():
        raise ValueError(
            f"{what}: the value of site '{name}' lies outside its support ({support}). Give a value "
            f"that the site can take."
        )
    return tensor
