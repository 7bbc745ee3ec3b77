"""Wishart factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.conjugacy.families import Family, Tensors, family
from ppl_vi.conjugacy.matrices import PositiveDefinite, inverse_of
from ppl_vi.conjugacy.values import Law


class Wishart(dist.Wishart):
    """Wishart; torch's own takes every draw for singular, warns, and draws again."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """``[*sample_shape, *batch, D, D]``, by Bartlett's decomposition."""
        drawn: Tensor = self._bartlett_sampling(torch.Size(sample_shape))
        return drawn


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

    def start(self, value: Tensor, spread: float) -> Tensors:
        dimension = value.shape[-1]
        freedom = torch.full(value.shape[:-2], dimension + spread**-2).to(value)
        inverse = inverse_of(torch.linalg.cholesky(value))[0]
        inverse_scale = inverse * freedom[..., None, None]
        return 0.5 * (freedom - dimension - 1), -0.5 * inverse_scale

    def as_precision(self, value: Tensor) -> Tensor:
        """The matrix that has the Wishart distribution, of a value of the site."""
        return value

    def usual(self, natural: Tensors) -> tuple[Tensor, Tensor]:
        """n and S⁻¹."""
        dimension = natural[1].shape[-1]
        return 2 * natural[0] + dimension + 1, -2 * natural[1]
