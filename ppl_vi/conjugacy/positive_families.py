"""Gamma, Beta and Dirichlet factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.conjugacy.families import Family, Tensors, family
from ppl_vi.conjugacy.positive import Positive, Power
from ppl_vi.conjugacy.values import Law

_EDGE = 1e-3
"""How near to 0 and 1 probabilities start: draws of a sparse prior may be 0 itself."""


@family("Gamma", "Exponential", "Chi2")
@dataclass(frozen=True)
class GammaFamily(Family):
    """Gamma: natural parameters a - 1 and -b, mean parameters E log v and E v."""

    @property
    def _less(self) -> float:
        """What is taken off the shape in its natural parameter."""
        return 1.0

    def as_precision(self, value: Tensor) -> Tensor:
        """The number that has the Gamma distribution, of a value of the site."""
        return value

    def usual(self, natural: Tensors) -> tuple[Tensor, Tensor]:
        """a and b."""
        return natural[0] + self._less, -natural[1]

    def moments(self, natural: Tensors) -> Tensors:
        shape, rate = self.usual(natural)
        return shape.digamma() - rate.log(), shape / rate

    def law(self, moments: Tensors) -> Law:
        log, mean = moments
        return Positive(log, torch.ones_like(log), {self.site: Power(mean, 1.0)})

    def distribution(self, natural: Tensors) -> Any:
        return dist.Gamma(*self.usual(natural)).to_event(self.event_dim)

    def start(self, value: Tensor, spread: float) -> Tensors:
        shape = torch.full_like(value, spread**-2)
        return shape - self._less, -shape / value


@family("InverseGamma")
@dataclass(frozen=True)
class InverseGammaFamily(GammaFamily):
    """Inverse Gamma: natural parameters a + 1 and -b, mean parameters E log 1/v and E 1/v."""

    @property
    def _less(self) -> float:
        return -1.0

    def as_precision(self, value: Tensor) -> Tensor:
        return 1 / value

    def law(self, moments: Tensors) -> Law:
        law = super().law(moments)
        assert isinstance(law, Positive)
        return law.to_the(-1.0)

    def distribution(self, natural: Tensors) -> Any:
        return dist.InverseGamma(*self.usual(natural)).to_event(self.event_dim)

    def start(self, value: Tensor, spread: float) -> Tensors:
        return super().start(1 / value, spread)


@family("Beta")
@dataclass(frozen=True)
class BetaFamily(Family):
    """Beta: natural parameters a - 1 and b - 1, mean parameters E log v and E log(1 - v)."""

    def moments(self, natural: Tensors) -> Tensors:
        a, b = natural[0] + 1, natural[1] + 1
        total = (a + b).digamma()
        return a.digamma() - total, b.digamma() - total

    def law(self, moments: Tensors) -> Law:
        return Positive(moments[0], log_complement=moments[1])

    def distribution(self, natural: Tensors) -> Any:
        return dist.Beta(natural[0] + 1, natural[1] + 1).to_event(self.event_dim)

    def start(self, value: Tensor, spread: float) -> Tensors:
        total, value = spread**-2, value.clamp(_EDGE, 1 - _EDGE)
        return total * value - 1, total * (1 - value) - 1


@family("Dirichlet")
@dataclass(frozen=True)
class DirichletFamily(Family):
    """Dirichlet: natural parameters a - 1, mean parameters E log v."""

    def moments(self, natural: Tensors) -> Tensors:
        a = natural[0] + 1
        return (a.digamma() - a.sum(-1, keepdim=True).digamma(),)

    def law(self, moments: Tensors) -> Law:
        return Positive(moments[0])

    def distribution(self, natural: Tensors) -> Any:
        return dist.Dirichlet(natural[0] + 1).to_event(self.event_dim - 1)

    def start(self, value: Tensor, spread: float) -> Tensors:
        return (value.clamp(min=_EDGE) * spread**-2 - 1,)
