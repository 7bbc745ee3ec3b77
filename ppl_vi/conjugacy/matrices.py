"""Positive definite latents (Wishart)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.conjugacy.sums import spread
from ppl_vi.conjugacy.values import SPREADS, Law, Operation, rule


@dataclass(frozen=True)
class PositiveDefinite(Law):
    """A random precision matrix.

    Attributes:
        mean: ``[*batch, D, D]``, E V.
        log_determinant: ``[*batch]``, E log |V|.
    """

    mean: Tensor
    log_determinant: Tensor


def inverse_of(root: Tensor) -> tuple[Tensor, Tensor]:
    """S⁻¹ and log |S| of S = L Lᵀ, from L ``[*batch, D, D]``."""
    return torch.cholesky_inverse(root), 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@rule(*SPREADS)
def _spread(operation: Operation) -> Law | None:
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], PositiveDefinite):
        return None
    law, shape = laws[0], operation.shape
    return PositiveDefinite(spread(law.mean, shape), spread(law.log_determinant, shape[:-2]))


@rule(
    *("view", "view_as", "reshape", "unsqueeze", "squeeze", "getitem"),
    *("index_select", "contiguous", "clone", "to", "detach"),
)
def _moved(operation: Operation) -> Law | None:
    """Operations on the batch; a number for each matrix follows as a matrix filled with it."""
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], PositiveDefinite):
        return None
    law = laws[0]
    mean = operation.on(law.mean)
    filled = operation.on(law.log_determinant[..., None, None].expand_as(law.mean))
    if mean.dim() < 2 or mean.shape[-2:] != law.mean.shape[-2:]:
        return None
    return PositiveDefinite(mean, filled[..., 0, 0])
