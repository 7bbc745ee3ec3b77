"""Sums of products of tensors that broadcast, without the tensor of all products."""

from __future__ import annotations

import torch
from torch import Tensor

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_GROWTH = 2


def compact(tensor: Tensor, keep: int = 0) -> Tensor:
    """The tensor with one entry along each dimension that it was expanded over, but the last ones."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1 and dim < tensor.dim() - keep:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def grows(*tensors: Tensor) -> bool:
    """Whether the tensors together have many more entries than the largest of them."""
    own = [compact(tensor) for tensor in tensors]
    together: int = torch.broadcast_shapes(*(tensor.shape for tensor in own)).numel()
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
    shape = torch.broadcast_shapes(one.shape, other.shape)
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
