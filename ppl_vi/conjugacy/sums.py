"""Sums of products of tensors that broadcast, without the tensor of all products."""

from __future__ import annotations

import string
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

_LETTERS = string.ascii_letters
_GROWTH = 2


def spread(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor.expand(shape)``, which ``compact`` undoes without a gradient of that size."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    wide: Any = tensor.expand(shape)
    wide.before_spread = before_spread(tensor)
    return wide  # type: ignore[no-any-return]


def before_spread(tensor: Tensor) -> Tensor:
    """What a tensor was expanded from."""
    before: Tensor = getattr(tensor, "before_spread", tensor)
    return before


def compact(tensor: Tensor, keep: int = 0) -> Tensor:
    """The tensor with one entry along each dimension that it was expanded over, but the last ones."""
    before = before_spread(tensor)
    if before is not tensor:
        missing = (1,) * (tensor.dim() - before.dim())
        laid = before.reshape([*missing, *before.shape])
        last = tensor.dim() - keep
        tensor = laid.expand([*laid.shape[:last], *tensor.shape[last:]])
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1 and dim < tensor.dim() - keep:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def grows(*tensors: Tensor) -> bool:
    """Whether the tensors together have many more entries than the largest of them."""
    own = [compact(tensor) for tensor in tensors]
    together: int = prod(broadcast_shape(*(tensor.shape for tensor in own)))
    return together > _GROWTH * max(tensor.numel() for tensor in own)


def summed_product(one: Tensor, other: Tensor, events: int) -> Tensor:
    """The sum of ``one * other`` over the last ``events`` dimensions, which broadcast.

    Args:
        one: ``[*batch, *event]``.
        other: likewise, of a shape that broadcasts.
        events: how many dimensions are summed over.

    Returns:
        ``[*batch]``, with one entry along dimensions that both were expanded over.
    """
    shape = broadcast_shape(one.shape, other.shape)
    rank = len(shape)
    factors, terms = [], []
    for tensor in (one, other):
        tensor = compact(tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape)))
        kept = [d for d in range(rank) if tensor.shape[d] > 1]
        factors.append(tensor.reshape([tensor.shape[d] for d in kept]))
        terms.append("".join(_LETTERS[d] for d in kept))
    batch = range(rank - events)
    left = [d for d in batch if _LETTERS[d] in terms[0] + terms[1]]
    found = torch.einsum(f"{terms[0]},{terms[1]}->{''.join(_LETTERS[d] for d in left)}", *factors)
    # Event dimensions along which neither varies count as often as they are long.
    absent = [d for d in range(rank - events, rank) if _LETTERS[d] not in terms[0] + terms[1]]
    for d in absent:
        found = found * shape[d]
    return found.reshape([shape[d] if d in left else 1 for d in batch])


def broadcast_but_last(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same leading dimensions, each with its own last one."""
    shape = broadcast_shape(one.shape[:-1], other.shape[:-1])
    return one.expand(*shape, one.shape[-1]), other.expand(*shape, other.shape[-1])
