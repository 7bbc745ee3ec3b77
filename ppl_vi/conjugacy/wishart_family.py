"""Wishart factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.families import Family, Tensors, family
from ppl_vi.conjugacy.matrices import PositiveDefinite, inverse_of
from ppl_vi.conjugacy.values import Law
from ppl_vi.distributions import Wishart


@family("Wishart")
@dataclass(frozen=True)
class WishartFamily(Family):
    """Wishart: natural parameters (n - D - 1) / 2 and -S⁻¹ / 2, mean parameters E log |V| and E V."""

    def moments(self, natural: Tensors) -> Tensors:
        freedom, inverse_scale = self.usual(natural)
        scale, log_inverse = inverse_of(torch.linalg.cholesky(inverse_scale))
        dimension = scale.shape[-1]
        halves = 0.5 * (freedom.unsqueeze(-1) - torch.arange(dimension).to(freedom))
        log = halves.digamma().sum(-1) + dimension * math.log(2.0) - log_inverse
        return log, freedom[..., None, None] * scale

    def law(self, moments: Tensors) -> Law:
        log, mean = moments
        identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        return PositiveDefinite(mean, log, {self.site: identity.expand_as(mean)})

    def natural(self, moments: Tensors, gradients: Tensors) -> Tensors:
        of_log, of_mean = gradients
        return of_log, 0.5 * (of_mean + of_mean.mT)

    def distribution(self, natural: Tensors) -> Any:
        freedom, inverse_scale = self.usual(natural)
        return Wishart(freedom, precision_matrix=inverse_scale).to_event(self.event_dim - 2)

    def entropy(self, natural: Tensors) -> Tensor:
        """½ n D - ½ (n - D - 1) E log |V| + ½ n log |S| + ½ n D log 2 + log Γ_D(n / 2)."""
        freedom, inverse_scale = self.usual(natural)
        log, _ = self.moments(natural)
        dimension = inverse_scale.shape[-1]
        log_scale = -inverse_of(torch.linalg.cholesky(inverse_scale))[1]
        normalizer: Tensor = torch.special.multigammaln(freedom / 2, dimension)
        total = 0.5 * freedom * (dimension * (1 + math.log(2.0)) + log_scale)
        return total - 0.5 * (freedom - dimension - 1) * log + normalizer

    def start(self, value: Tensor, spread: float) -> Tensors:
        dimension = value.shape[-1]
        freedom = torch.full(value.shape[:-2], dimension + spread**-2).to(value)
        inverse = inverse_of(torch.linalg.cholesky(value))[0]
        inverse_scale = inverse * freedom[..., None, None]
        symmetric = 0.5 * (inverse_scale + inverse_scale.mT)  # rounding leaves a difference
        return 0.5 * (freedom - dimension - 1), -0.5 * symmetric

    def as_precision(self, value: Tensor) -> Tensor:
        """The matrix that has the Wishart distribution, of a value of the site."""
        return value

    def usual(self, natural: Tensors) -> tuple[Tensor, Tensor]:
        """n and S⁻¹."""
        dimension = natural[1].shape[-1]
        return 2 * natural[0] + dimension + 1, -2 * natural[1]
