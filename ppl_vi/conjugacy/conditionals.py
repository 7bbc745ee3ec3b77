"""Gaussian vectors given a latent that their precision is a multiple of.

Written as m + L ε / √τ, with L Lᵀ = K⁻¹, they have precision K τ about m; given a Wishart matrix they
are m + κ^(-1/2) Λ^(-1/2) ε, with precision κ Λ. The program runs on m and on L or κ^(-1/2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.conjugacy.families import Tensors
from ppl_vi.conjugacy.gaussian import Carried, Multilinear
from ppl_vi.conjugacy.gaussian_family import GaussianFamily
from ppl_vi.conjugacy.positive_families import GammaFamily
from ppl_vi.conjugacy.values import Law
from ppl_vi.conjugacy.wishart_family import WishartFamily


class Update(NamedTuple):
    """The best conditional, and what it adds to the gradients in the precision's moments.

    Attributes:
        natural: its natural parameters.
        log: to those in E log τ, for each vector.
        mean: ``[*others]``, or ``[*others, D, D]``, to those in E τ.
    """

    natural: Tensors
    log: float
    mean: Tensor


@dataclass(frozen=True, eq=False)
class Conditional(ABC):
    """Gaussian vectors given a latent that their precision is a multiple of.

    Attributes:
        gaussian: the family of their site by itself, ``[*others]`` vectors of R entries.
        latent: the family of the other site.
        index: ``[*others]``, which entry of it each vector has, in its flattened batch.
    """

    gaussian: GaussianFamily
    latent: Any
    index: Tensor

    @abstractmethod
    def moments(self, natural: Tensors) -> Tensors:
        """m ``[*others, R]``, and a root of K⁻¹."""

    @abstractmethod
    def law(self, moments: Tensors) -> Law:
        """The law of the site's value, carried by the latent."""

    @abstractmethod
    def given(self, natural: Tensors, latent: Tensor) -> Tensors:
        """The natural parameters of the Gaussian at a value of the latent, with draws on its left."""

    @abstractmethod
    def update(self, moments: Tensors, gradients: Tensors, mean: Tensor) -> Update:
        """The best conditional, from the gradients of E log p in its moments.

        Args:
            moments: m and the root.
            gradients: in these.
            mean: of the latent.
        """

    @abstractmethod
    def square(self, natural: Tensors) -> Tensor:
        """``[*others]`` mᵀ K m, or ``[*others, D, D]`` κ m mᵀ."""

    @abstractmethod
    def marginal(self, natural: Tensors, latent: Tensors) -> Any:
        """Student's t: the distribution of the vectors, from both natural parameters."""

    @abstractmethod
    def entropy(self, natural: Tensors, log: Tensor) -> Tensor:
        """``[*others]``, given the mean parameter E log τ of the latent."""

    @abstractmethod
    def start(self, value: Tensor, spread: float) -> Tensors:
        """Natural parameters around a value."""

    @property
    def carried(self) -> Carried:
        """The site's name, as the name of its noise."""
        return Carried.of(self.gaussian.site, by=self.latent.site)

    @property
    @abstractmethod
    def batch(self) -> torch.Size:
        """The shape of the latent, without the dimensions of a matrix."""

    def entries(self, tensor: Tensor, events: int = 0) -> Tensor:
        """``[*draws, *others, *event]``: for each vector its entry of ``[*draws, *batch, *event]``."""
        draws = tensor.dim() - len(self.batch) - events
        left, event = tensor.shape[:draws], tensor.shape[tensor.dim() - events :]
        rows = tensor.reshape(*left, -1, *event).index_select(draws, self.index.flatten())
        return rows.reshape(left + self.index.shape + event)

    def gathered(self, tensor: Tensor) -> Tensor:
        """``[*batch, *event]``: for each entry the sum over its vectors of ``[*others, *event]``."""
        event = tensor.shape[self.index.dim() :]
        rows = tensor.reshape(-1, *event)
        total = rows.new_zeros(self.batch.numel(), *event).index_add(0, self.index.flatten(), rows)
        return total.reshape(self.batch + event)


@dataclass(frozen=True, eq=False)
class GivenGamma(Conditional):
    """N(m, (K τ)⁻¹): natural parameters K m ``[*others, R]`` and K ``[*others, R, R]``."""

    latent: GammaFamily

    @property
    def batch(self) -> torch.Size:
        return self.latent.shape

    def moments(self, natural: Tensors) -> Tensors:
        return self.gaussian.moments(natural)

    def law(self, moments: Tensors) -> Law:
        return replace(self.gaussian, site=self.carried).law(moments)

    def given(self, natural: Tensors, latent: Tensor) -> Tensors:
        tau = self.entries(latent).unsqueeze(-1)
        return natural[0] * tau, natural[1] * tau.unsqueeze(-1)

    def update(self, moments: Tensors, gradients: Tensors, mean: Tensor) -> Update:
        (old, _), (of_mean, of_root) = moments, gradients
        tau = self.entries(mean).unsqueeze(-1)
        weighted, precision = self.gaussian.natural(moments, (of_mean / tau, of_root))
        step = (self.gaussian.moments((weighted, precision))[0] - old).unsqueeze(-1)
        square = (step * (precision @ step)).sum((-2, -1))
        return Update((weighted, precision), -0.5 * self.gaussian.size, 0.5 * square)

    def square(self, natural: Tensors) -> Tensor:
        return (natural[0] * self.moments(natural)[0]).sum(-1)

    def marginal(self, natural: Tensors, latent: Tensors) -> Any:
        shape, rate = (self.entries(tensor) for tensor in self.latent.usual(latent))
        mean, root = self.moments(natural)
        root = root * (rate / shape).sqrt()[..., None, None]
        if self.gaussian.size > 1:
            tril = torch.linalg.cholesky(root @ root.mT)
            return dist.MultivariateStudentT(2 * shape, mean, tril)
        laid = (self.gaussian.laid_out(t) for t in (2 * shape[..., None], mean, root.squeeze(-1)))
        return dist.StudentT(*laid).to_event(self.gaussian.event_dim)

    def entropy(self, natural: Tensors, log: Tensor) -> Tensor:
        return self.gaussian.entropy(natural) - 0.5 * self.gaussian.size * self.entries(log)

    def start(self, value: Tensor, spread: float) -> Tensors:
        return self.gaussian.start(value, spread)


@dataclass(frozen=True, eq=False)
class GivenWishart(Conditional):
    """N(m, (κ Λ)⁻¹): natural parameters κ m ``[*others, D]`` and κ ``[*others]``."""

    latent: WishartFamily

    @property
    def batch(self) -> torch.Size:
        return self.latent.shape[:-2]

    def moments(self, natural: Tensors) -> Tensors:
        return natural[0] / natural[1].unsqueeze(-1), natural[1].rsqrt()

    def law(self, moments: Tensors) -> Law:
        mean, root = moments
        identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        columns = root.unsqueeze(-1) * identity.reshape(-1, *(1,) * root.dim(), mean.shape[-1])
        return Multilinear({(): mean, (self.carried,): columns})

    def given(self, natural: Tensors, latent: Tensor) -> Tensors:
        weighted, kappa = natural
        matrix = self.entries(latent, 2)
        return (matrix @ weighted.unsqueeze(-1)).squeeze(-1), kappa[..., None, None] * matrix

    def update(self, moments: Tensors, gradients: Tensors, mean: Tensor) -> Update:
        (old, root), (of_mean, of_root) = moments, gradients
        kappa = -of_root / (root * old.shape[-1])
        step = torch.linalg.solve(self.entries(mean, 2), of_mean) / kappa.unsqueeze(-1)
        outer = 0.5 * kappa[..., None, None] * step.unsqueeze(-1) * step.unsqueeze(-2)
        return Update((kappa.unsqueeze(-1) * (old + step), kappa), -0.5, outer)

    def square(self, natural: Tensors) -> Tensor:
        return natural[0].unsqueeze(-1) * self.moments(natural)[0].unsqueeze(-2)

    def marginal(self, natural: Tensors, latent: Tensors) -> Any:
        freedom, inverse_scale = self.latent.usual(latent)
        dimension = inverse_scale.shape[-1]
        left = self.entries(freedom) - dimension + 1
        spread = self.entries(inverse_scale, 2) / (natural[1] * left)[..., None, None]
        mean = self.moments(natural)[0]
        return dist.MultivariateStudentT(left, mean, torch.linalg.cholesky(spread)).to_event(
            self.gaussian.event_dim - 1
        )

    def entropy(self, natural: Tensors, log: Tensor) -> Tensor:
        dimension = natural[0].shape[-1]
        constant = dimension * (1 + math.log(2 * math.pi) - natural[1].log())
        return 0.5 * (constant - self.entries(log))

    def start(self, value: Tensor, spread: float) -> Tensors:
        kappa = value.new_full(value.shape[:-1], spread**-2)
        return kappa.unsqueeze(-1) * value, kappa
