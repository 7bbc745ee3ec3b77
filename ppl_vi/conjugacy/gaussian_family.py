"""Gaussian factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.conjugacy.families import Family, Tensors, family
from ppl_vi.conjugacy.gaussian import Multilinear
from ppl_vi.conjugacy.values import Law


@family("Normal", "MultivariateNormal")
@dataclass(frozen=True)
class GaussianFamily(Family):
    """Gaussians: dimensions that are coupled share a covariance matrix, others are independent.

    Natural parameters are Λ m ``[*others, R]`` and Λ ``[*others, R, R]``, for R entries that are
    coupled. The program runs on the mean and on a root L of the covariance, L Lᵀ = Λ⁻¹, for which
    dF/dL = -Λ' L and dF/dm = Λ' (m' - m), with the new Λ' and m'.

    Attributes:
        coupled: dimensions of the shape, counted from the left.
    """

    coupled: tuple[int, ...] = ()

    def moments(self, natural: Tensors) -> Tensors:
        weighted, precision = natural
        if self.size == 1:
            deviation = precision.rsqrt()
            return weighted / precision.squeeze(-1), deviation
        root = torch.linalg.cholesky(precision)
        identity = torch.eye(self.size, dtype=root.dtype, device=root.device)
        deviation = torch.linalg.solve_triangular(root.mT, identity.expand_as(root), upper=True)
        return torch.cholesky_solve(weighted.unsqueeze(-1), root).squeeze(-1), deviation

    def law(self, moments: Tensors) -> Law:
        mean, deviation = moments
        columns = self._laid_out(deviation.movedim(-1, 0), 1)
        return Multilinear({(): self.laid_out(mean), (self.site,): columns})

    def natural(self, moments: Tensors, gradients: Tensors) -> Tensors:
        (mean, deviation), (of_mean, of_deviation) = moments, gradients
        if self.size == 1:
            precision = -of_deviation / deviation
        else:
            precision = -torch.linalg.solve_triangular(
                deviation, of_deviation, upper=True, left=False
            )
            precision = 0.5 * (precision + precision.mT)
        return of_mean + (precision @ mean.unsqueeze(-1)).squeeze(-1), precision

    def distribution(self, natural: Tensors) -> Any:
        """Normal; or, of ``[*others]`` vectors, MultivariateNormal."""
        mean, deviation = self.moments(natural)
        if self.size > 1:
            return dist.MultivariateNormal(mean, precision_matrix=natural[1])
        located, scale = self.laid_out(mean), self.laid_out(deviation.squeeze(-1))
        return dist.Normal(located, scale).to_event(self.event_dim)

    def entropy(self, natural: Tensors) -> Tensor:
        _, precision = natural
        log = precision.squeeze((-2, -1)).log() if self.size == 1 else torch.logdet(precision)
        return 0.5 * (self.size * (1 + math.log(2 * math.pi)) - log)

    @property
    def jointly(self) -> bool:
        """Whether its distribution is over vectors that are laid out otherwise than the site."""
        last = (len(self.shape) - 1,)
        return self.size > 1 and not (self.coupled == last and self.event_dim == 1)

    def laid_out(self, vectors: Tensor) -> Tensor:
        """``[*draws, *shape]`` of ``[*draws, *others, R]``."""
        return self._laid_out(vectors, vectors.dim() - 1 - len(self._others))

    def start(self, value: Tensor, spread: float) -> Tensors:
        mean = self.packed(value)
        precision = torch.eye(self.size, dtype=value.dtype, device=value.device) / spread**2
        precision = precision.expand(*mean.shape, self.size).clone()
        return (precision @ mean.unsqueeze(-1)).squeeze(-1), precision

    @property
    def size(self) -> int:
        """R."""
        size = 1
        for dim in self.coupled:
            size *= self.shape[dim]
        return size

    @property
    def _others(self) -> list[int]:
        return [dim for dim in range(len(self.shape)) if dim not in self.coupled]

    def packed(self, value: Tensor) -> Tensor:
        """``[*others, R]`` of a value."""
        others = self._others
        packed = value.permute([*others, *self.coupled])
        return packed.reshape([*(self.shape[dim] for dim in others), self.size])

    def _laid_out(self, tensor: Tensor, leading: int) -> Tensor:
        """``[*leading, *shape]`` of ``[*leading, *others, R]``."""
        first, order = tuple(tensor.shape[:leading]), (*self._others, *self.coupled)
        tensor = tensor.reshape([*first, *(self.shape[dim] for dim in order)])
        back = [leading + order.index(dim) for dim in range(len(order))]
        return tensor.permute([*range(leading), *back])
