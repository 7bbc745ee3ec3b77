"""Joint factors of a precision and of the Gaussians whose own precision is a multiple of it.

q(τ) Π q(μ | τ), each q(μ | τ) a Gaussian with precision K τ about m, so that μ = m + L ε / √τ. In the
expected density of a Gaussian with precision c τ, E c τ (y - μ)² = c E τ (y - m)² + c L²: F is linear
in E τ and E log τ when m and L are held, its gradient in L tells the new K, and that in m the new m',
whatever q(τ) is. The entropy of q(μ | τ) takes ½ E log τ off for each entry, and moving m to m' gives
½ (m - m')ᵀ K (m - m') E τ back. With a Wishart matrix Λ for τ, K is a number.

Source: Bishop (2006), sections 2.3.6, 3.3 and 10.2; Murphy (2007), Conjugate Bayesian analysis of the
Gaussian distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.conditionals import Conditional
from ppl_vi.conjugacy.families import Factor, Family, Tensors
from ppl_vi.conjugacy.positive_families import GammaFamily
from ppl_vi.conjugacy.values import Law
from ppl_vi.conjugacy.wishart_family import WishartFamily


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
        found, back = [], torch.zeros_like(of_mean)
        for conditional, m, g in zip(self.conditionals, others, of_others, strict=True):
            update = conditional.update(m, g, own[1])
            found.append(update.natural)
            counted = torch.full(conditional.index.shape, update.log).to(of_log)
            of_log = of_log + conditional.gathered(counted)
            back = back + conditional.gathered(update.mean)
        side = of_mean.shape[-1] if isinstance(self.latent, WishartFamily) else 1
        shape = (*of_log.shape, side, side)
        of_mean = _moved(of_mean.reshape(shape), back.reshape(shape)).reshape(of_mean.shape)
        return _joined(self.latent.natural(own, (of_log, of_mean)), *found)

    def between(self, old: Tensors, new: Tensors, rate: Tensor) -> Tensors:
        """The natural parameter beside E τ is that of the precision less ½ mᵀ K m of each Gaussian."""
        moved = super().between(self._with_squares(old, -0.5), self._with_squares(new, -0.5), rate)
        return self._with_squares(moved, 0.5)

    def _with_squares(self, natural: Tensors, times: float) -> Tensors:
        """With the squares of the Gaussians' means added to what stands beside E τ."""
        (first, second), *others = _pairs(natural)
        for conditional, n in zip(self.conditionals, others, strict=True):
            square = conditional.gathered(conditional.square(n))
            second = second + times * square.reshape(second.shape)
        return _joined((first, second), *others)

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


def _moved(old: Tensor, back: Tensor) -> Tensor:
    """``[*batch, D, D]``: -b, or a matrix, at new means, from that at old ones.

    Where these were so far away that the difference has no digits left, it is less than that: a matrix
    that is surely negative definite, with which the next sweep starts from means that are near.
    """
    new = old + back
    before, after = (t.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for t in (old, new))
    identity = torch.eye(old.shape[-1], dtype=old.dtype, device=old.device)
    return torch.where(after > torch.finfo(old.dtype).eps ** 0.5 * before, before * identity, new)


def _pairs(tensors: Tensors) -> list[Tensors]:
    return [tensors[place : place + 2] for place in range(0, len(tensors), 2)]


def _joined(*parts: Tensors) -> Tensors:
    return tuple(tensor for part in parts for tensor in part)
