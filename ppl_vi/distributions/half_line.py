"""Distributions of positive numbers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.distributions.elementwise import Elementwise, Number, Shape


class _FromHazard(Elementwise):
    """A positive number given by its cumulative hazard H: cdf = 1 - exp(-H)."""

    support = constraints.nonnegative

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        # The hazard at the draw is Exponential(1): finer in the upper tail than a uniform number.
        hazard = getattr(self, self.names[0]).new_empty(shape).exponential_()
        return self._reached(hazard.clamp_(min=torch.finfo(hazard.dtype).tiny))

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -torch.expm1(-self._hazard(value.clamp(min=0)))

    def icdf(self, value: Tensor) -> Tensor:
        return self._reached(-torch.log1p(-value))

    def _hazard(self, value: Tensor) -> Tensor:
        """H at a value."""
        raise NotImplementedError

    def _reached(self, hazard: Tensor) -> Tensor:
        """The value at which H is reached."""
        raise NotImplementedError


class Rayleigh(_FromHazard):
    """The length of a plane vector of two independent Normal(0, scale) numbers.

    p(x) = x / scale² · exp(-x² / (2 scale²)) for x ≥ 0.

    Args:
        scale: [*batch], positive; the mode.

    Raises:
        ValueError: the scale is not positive.

    Example:
        >>> Rayleigh(torch.tensor(2.0)).mean
        tensor(2.5066)

    Source: Johnson, Kotz and Balakrishnan (1994), volume 1, chapter 18.
    """

    arg_constraints: ClassVar = {"scale": constraints.positive}
    names = ("scale",)
    scale: Tensor

    def __init__(self, scale: Number, validate_args: bool | None = None) -> None:
        super().__init__(scale, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(math.pi / 2)

    @property
    def mode(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * (2 - math.pi / 2)

    def _log_density(self, value: Tensor) -> Tensor:
        return value.log() - 2 * self.scale.log() - self._hazard(value)

    def _hazard(self, value: Tensor) -> Tensor:
        return (value / self.scale).square() / 2

    def _reached(self, hazard: Tensor) -> Tensor:
        return self.scale * (2 * hazard).sqrt()


class Gompertz(_FromHazard):
    """A lifetime whose hazard grows exponentially.

    cdf(x) = 1 - exp(-concentration · (exp(rate · x) - 1)) for x ≥ 0. In SciPy, this is
    ``gompertz(c=concentration, scale=1 / rate)``. Mean and variance have no elementary form. They are
    integrated with a trapezoid rule whose error is at round-off, and can be differentiated.

    Args:
        concentration: [*batch], positive.
        rate: [*batch], positive, per unit of x.

    Raises:
        ValueError: a parameter is not positive.

    Example:
        >>> Gompertz(torch.tensor(1.0), torch.tensor(2.0)).mean
        tensor(0.2982)

    Source: Johnson, Kotz and Balakrishnan (1995), volume 2, chapter 22.
    """

    arg_constraints: ClassVar = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    names = ("concentration", "rate")
    concentration: Tensor
    rate: Tensor

    def __init__(
        self, concentration: Number, rate: Number, validate_args: bool | None = None
    ) -> None:
        super().__init__(concentration, rate, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        weights, values = self._nodes()
        return (weights * values).sum(-1)

    @property
    def mode(self) -> Tensor:
        return -self.concentration.log().clamp(max=0) / self.rate

    @property
    def variance(self) -> Tensor:
        weights, values = self._nodes()
        return (weights * (values - self.mean.unsqueeze(-1)).square()).sum(-1)

    def _log_density(self, value: Tensor) -> Tensor:
        log_hazard_rate = self.concentration.log() + self.rate.log() + self.rate * value
        return log_hazard_rate - self._hazard(value)

    def _hazard(self, value: Tensor) -> Tensor:
        return self.concentration * torch.expm1(self.rate * value)

    def _reached(self, hazard: Tensor) -> Tensor:
        return torch.log1p(hazard / self.concentration) / self.rate

    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Weights and values such that E[f(x)] = Σ weights · f(values), if f(0) is finite."""
        # The logarithm of the hazard has density exp(t - exp(t)), and all is analytic within a strip
        # of half-width π/2 about the real line: steps of 1/4 err by exp(-4 π²) = 7e-18.
        log_hazard = torch.arange(-40.0, 4.25, 0.25, dtype=torch.float64)
        weights = 0.25 * (log_hazard - log_hazard.exp()).exp()
        hazard, weights = log_hazard.exp().to(self.rate), weights.to(self.rate)
        values = torch.log1p(hazard / self.concentration.unsqueeze(-1)) / self.rate.unsqueeze(-1)
        return weights, values


class Erlang(dist.Gamma):
    """The waiting time for a whole number of events: a Gamma whose concentration is an integer.

    p(x) = rate^concentration · x^(concentration - 1) · exp(-rate · x) / (concentration - 1)! for x ≥ 0.
    Only the rate is reparameterized.

    Args:
        concentration: [*batch], positive whole numbers.
        rate: [*batch], positive.

    Raises:
        ValueError: a parameter is not positive, or the concentration is no whole number or trainable.

    Example:
        >>> Erlang(3, torch.tensor(2.0)).mean
        tensor(1.5000)

    Source: Johnson, Kotz and Balakrishnan (1994), volume 1, chapter 17.
    """

    arg_constraints: ClassVar = {
        "concentration": constraints.positive_integer,
        "rate": constraints.positive,
    }

    def __init__(
        self, concentration: Tensor | int, rate: Number, validate_args: bool | None = None
    ) -> None:
        if isinstance(concentration, Tensor):
            if concentration.requires_grad:
                raise ValueError(
                    "Erlang: the concentration is trainable, but it is a whole number and has no "
                    "gradient. Fix it, or use pyro.distributions.Gamma."
                )
            dtype = rate.dtype if isinstance(rate, Tensor) else torch.get_default_dtype()
            concentration = concentration.to(dtype)
        super().__init__(concentration, rate, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(Erlang, _instance))
