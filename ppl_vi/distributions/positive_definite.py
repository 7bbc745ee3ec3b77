"""Positive definite matrices as vectors, so that guides on the whole space reach them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix


class PositiveDefiniteTransform(Transform):
    """From ``[..., D (D + 1) / 2]`` to V = L Lᵀ ``[..., D, D]``, with log L_dd on the diagonal of L.

    log |dV / dx| = D log 2 + Σ_d (D - d + 2) x_dd, d = 1, ..., D

    torch's own has no log-determinant. ``biject_to(constraints.positive_definite)`` is this one.

    Source: Stan Reference Manual, "Covariance matrices"; Magnus and Neudecker (1999).
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteTransform)

    def __hash__(self) -> int:
        return hash(PositiveDefiniteTransform)

    def _call(self, x: Tensor) -> Tensor:
        entries: Tensor = vec_to_tril_matrix(x)
        root = entries.tril(-1) + entries.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        return root @ root.mT

    def _inverse(self, y: Tensor) -> Tensor:
        root = torch.linalg.cholesky(y)
        logs = root.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        entries: Tensor = tril_matrix_to_vec(root.tril(-1) + logs)
        return entries

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``[...]``."""
        dimension = y.shape[-1]
        logs = vec_to_tril_matrix(x).diagonal(dim1=-2, dim2=-1)
        weights = torch.arange(dimension, 0, -1, device=x.device, dtype=x.dtype) + 1
        total: Tensor = (weights * logs).sum(-1) + dimension * math.log(2.0)
        return total

    def forward_shape(self, shape: Any) -> torch.Size:
        """Of V."""
        dimension = math.isqrt(2 * shape[-1])
        return torch.Size([*shape[:-1], dimension, dimension])

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Of the vectors."""
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])


biject_to.register(constraints.positive_definite, lambda constraint: PositiveDefiniteTransform())
