"""Entries of tables by category, without a table for each row."""

from __future__ import annotations

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.nn.functional import embedding
from torch.utils._python_dispatch import _disable_current_modes

from ppl_vi.conjugacy.sums import broadcast_but_last


def taken(tables: Tensor, places: Tensor) -> Tensor:
    """The entry of each table at each place, which broadcast.

    Every place is taken of every table along dimensions that only one of the two has: words of topics,
    say. No gradient is as large as all tables for all places.

    Args:
        tables: ``[*batch, C]``.
        places: ``[*batch]``, integers below C.

    Returns:
        ``[*batch]``.
    """
    rank = max(tables.dim() - 1, places.dim())
    tables = tables.reshape([*(1,) * (rank + 1 - tables.dim()), *tables.shape])
    places = places.reshape([*(1,) * (rank - places.dim()), *places.shape])
    along = _runs_along(places, tables.shape[-1])
    if along is not None and tables.shape[along] == 1:
        return tables.transpose(along, -1).squeeze(-1)
    if all(1 in sizes for sizes in zip(tables.shape, places.shape, strict=False)):
        return _every(tables, places)
    wide, index = broadcast_but_last(tables, places.unsqueeze(-1))
    return wide.gather(-1, index).squeeze(-1)


def _runs_along(places: Tensor, size: int) -> int | None:
    """The dimension along which places are 0, 1, ... up to all of them, as of an enumerated latent."""
    longer = [dim for dim, length in enumerate(places.shape) if length > 1]
    if len(longer) != 1 or places.numel() != size:
        return None
    with _disable_current_modes():  # a capture keeps the answer: values that are enumerated stay so
        runs = torch.equal(places.flatten(), torch.arange(size, device=places.device))
    return longer[0] if runs else None


def _every(tables: Tensor, places: Tensor) -> Tensor:
    """Every place of every table, where no dimension belongs to both."""
    rank = places.dim()
    found = embedding(places.flatten(), tables.reshape(-1, tables.shape[-1]).mT)
    laid = found.reshape([*places.shape, *tables.shape[:-1]])
    pairs = laid.permute([side * rank + dim for dim in range(rank) for side in (0, 1)])
    return pairs.reshape(broadcast_shape(places.shape, tables.shape[:-1]))
