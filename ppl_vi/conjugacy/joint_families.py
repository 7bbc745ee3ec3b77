"""Joint factors of a precision and of the Gaussians whose own precision is a multiple of it.

q(τ) Π q(μ | τ), each q(μ | τ) a Gaussian with precision K τ about m. Written as μ = m + L ε / √τ, with
L Lᵀ = K⁻¹, the program runs on m and L, and on E τ and E log τ: in the expected density of a Gaussian
with precision c τ, E c τ (y - μ)² = c E τ (y - m)² + c L². So F is linear in E τ and E log τ when m and
L are held, its gradient in L tells the new K, and that in m the new m', whatever q(τ) is. The entropy
of q(μ | τ) takes ½ E log τ off for each entry, and moving m to m' brings -½ (m - m')ᵀ K (m - m') E τ
back. A Wishart matrix is the same, with μ = m + κ^(-1/2) Λ^(-1/2) ε.

Source: Bishop (2006), sections 2.3.6, 3.3 and 10.2; Murphy (2007), Conjugate Bayesian analysis of the
Gaussian distribution.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.conjugacy.families import Factor, Family, Tensors
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


@dataclass(frozen=True, eq=False)
class JointFamily(Factor):
    """A precision and the Gaussians that it carries: natural parameters of it, then of each of them.

    Attributes:
        latent: the family of the precision: Gamma, InverseGamma (of a variance) or Wishart.
        conditionals: the Gaussians given it, none of which depends on another one.
    """

    latent: GammaFamily | WishartFamily
    conditionals: tuple[Conditional, ...]

    def moments(self, natural: Tensors) -> Tensors:
        own, *others = _pairs(natural)
        found = [c.moments(n) for c, n in zip(self.conditionals, others, strict=True)]
        return _joined(self.latent.moments(own), *found)

    def laws(self, moments: Tensors) -> dict[str, Law]:
        own, *others = _pairs(moments)
        found = zip(self.conditionals, others, strict=True)
        return {
            self.latent.site: self.latent.law(own),
            **{c.gaussian.site: c.law(m) for c, m in found},
        }

    def laws_at_mean(self, natural: Tensors) -> dict[str, Law]:
        """The laws of the Gaussians at the mean of the precision, where they are ordinary ones."""
        own, *others = _pairs(natural)
        mean = self.latent.moments(own)[1]
        return {
            c.gaussian.site: c.gaussian.law(c.gaussian.moments(c.given(n, mean)))
            for c, n in zip(self.conditionals, others, strict=True)
        }

    def natural(self, moments: Tensors, gradients: Tensors) -> Tensors:
        own, *others = _pairs(moments)
        (of_log, of_mean), *of_others = _pairs(gradients)
        found = []
        for conditional, m, g in zip(self.conditionals, others, of_others, strict=True):
            update = conditional.update(m, g, own[1])
            found.append(update.natural)
            counted = torch.full(conditional.index.shape, update.log).to(of_log)
            of_log = of_log + conditional.gathered(counted)
            of_mean = of_mean + conditional.gathered(update.mean)
        return _joined(self.latent.natural(own, (of_log, of_mean)), *found)

    def distributions(self, natural: Tensors) -> dict[str, Any]:
        """Of each site by itself: the Gaussians are Student's t then."""
        own, *others = _pairs(natural)
        found = zip(self.conditionals, others, strict=True)
        return {
            self.latent.site: self.latent.distribution(own),
            **{c.gaussian.site: c.marginal(n, own) for c, n in found},
        }

    def starts(self, values: Mapping[str, Tensor], spread: float) -> Tensors:
        found = [c.start(values[c.gaussian.site], spread) for c in self.conditionals]
        return _joined(self.latent.starts(values, spread), *found)

    def entropy(self, natural: Tensors) -> Tensor:
        own, *others = _pairs(natural)
        log = self.latent.moments(own)[0]
        total = self.latent.entropy(own)
        for conditional, n in zip(self.conditionals, others, strict=True):
            each = conditional.gathered(conditional.entropy(n, log))
            total = total + each.reshape(*total.shape, -1).sum(-1)
        return total

    def draw(self, natural: Tensors, sample: Callable[[Family, Any], Tensor]) -> None:
        own, *others = _pairs(natural)
        drawn = self.latent.as_precision(sample(self.latent, self.latent.distribution(own)))
        for conditional, n in zip(self.conditionals, others, strict=True):
            gaussian = conditional.gaussian
            sample(gaussian, gaussian.distribution(conditional.given(n, drawn)))


def _pairs(tensors: Tensors) -> list[Tensors]:
    return [tensors[place : place + 2] for place in range(0, len(tensors), 2)]


def _joined(*parts: Tensors) -> Tensors:
    return tuple(tensor for part in parts for tensor in part)
