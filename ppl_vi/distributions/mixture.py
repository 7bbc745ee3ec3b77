"""A mixture whose draws move with all its parameters."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.utils import broadcast_all

from ppl_vi.distributions.elementwise import Number, Shape


class NormalMixture(dist.TorchDistribution):
    """A mixture of one-dimensional Normal distributions, reparameterized implicitly.

    p(z) = Σ_k softmax(logits)_k · Normal(z; loc_k, scale_k). A draw moves with a parameter λ as its
    cdf F demands: dz/dλ = -(dF/dλ) / p(z), without noise from the choice of a component. First
    derivatives only.

    Args:
        logits: [*batch, components], unnormalized.
        loc: [*batch, components].
        scale: [*batch, components], positive.

    Raises:
        ValueError: there is no dimension of components, or the scale is not positive.

    Example:
        >>> halves = NormalMixture(torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.ones(2))
        >>> halves.variance
        tensor(2.)

    Source: Figurnov, Mohamed and Mnih (2018), Implicit reparameterization gradients.
    """

    arg_constraints: ClassVar = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real
    has_rsample = True
    logits: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(
        self, logits: Tensor, loc: Number, scale: Number, validate_args: bool | None = None
    ) -> None:
        self.logits, self.loc, self.scale = broadcast_all(logits, loc, scale)
        if self.logits.dim() == 0:
            raise ValueError(
                "NormalMixture: logits, loc and scale are single numbers. Give at least one of them "
                "a last dimension of components."
            )
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Any:
        new = self._get_checked_instance(NormalMixture, _instance)
        shape = (*batch_shape, self.logits.shape[-1])
        new.logits, new.loc, new.scale = (
            parameter.expand(shape) for parameter in (self.logits, self.loc, self.scale)
        )
        super(NormalMixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return (self._weights * self.loc).sum(-1)

    @property
    def variance(self) -> Tensor:
        deviation = self.loc - self.mean.unsqueeze(-1)
        return (self._weights * (self.scale.square() + deviation.square())).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        distance = self._standardized(value)
        log_normal = -distance.square() / 2 - self.scale.log() - math.log(2 * math.pi) / 2
        return (self.logits.log_softmax(-1) + log_normal).logsumexp(-1)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._mixed_cdf(self._standardized(value))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            chosen = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            loc, scale = (
                parameter.expand(*chosen.shape, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
                for parameter in (self.loc, self.scale)
            )
            return torch.normal(loc, scale)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        value = self.sample(sample_shape)
        distance = self._standardized(value)
        with torch.no_grad():
            density = self._weights * (-distance.square() / 2).exp() / self.scale
            density = density.sum(-1) / math.sqrt(2 * math.pi)
            sign = torch.where(self._mixed_cdf(distance) > 0.5, -1.0, 1.0).to(value)
        # Of F and 1 - F, differentiate the smaller: the other one's derivative is lost to round-off.
        tail = self._mixed_cdf(sign.unsqueeze(-1) * distance)
        return value - sign * (tail - tail.detach()) / density

    @property
    def _weights(self) -> Tensor:
        return self.logits.softmax(-1)

    def _mixed_cdf(self, distance: Tensor) -> Tensor:
        # torch.special.ndtr loses the lower tail to round-off.
        return (self._weights * torch.erfc(-distance / math.sqrt(2))).sum(-1) / 2

    def _standardized(self, value: Tensor) -> Tensor:
        return (value.unsqueeze(-1) - self.loc) / self.scale


# Guides on the whole space reach a mixture's support as they reach its components'.
biject_to.register(
    constraints.MixtureSameFamilyConstraint, lambda support: biject_to(support.base_constraint)
)
