"""The few distributions that Pyro lacks, all with a reparameterized draw.

Pyro itself has the others with one: Normal, Laplace, StudentT, Logistic, Uniform, Exponential, Cauchy,
Pareto, Weibull, Gumbel, LogNormal, Gamma, Beta, Dirichlet, Chi2, FisherSnedecor and
MultivariateStudentT (elliptical). Where a parameter moves the support, as those of Triangular and
Reciprocal do, the score-function gradient is wrong, and the engine refuses it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["Erlang", "Gompertz", "NormalMixture", "Rayleigh", "Reciprocal", "Triangular"]

Number = Tensor | float
Shape = torch.Size | tuple[int, ...]


class _Elementwise(dist.TorchDistribution):
    """A distribution of single numbers; the parameters broadcast to the batch shape.

    A subclass has ``names`` of its parameters, ``mode``, and ``_log_density`` inside the support.
    """

    has_rsample = True
    names: ClassVar[tuple[str, ...]]

    def __init__(self, *parameters: Number, validate_args: bool | None = None) -> None:
        parameters = broadcast_all(*parameters)
        for name, parameter in zip(self.names, parameters, strict=True):
            setattr(self, name, parameter)
        super().__init__(parameters[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        for name in self.names:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(_Elementwise, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = self.support.check(value)
        # A logarithm taken outside the support would spoil the gradient of what is inside.
        value = torch.where(inside, value, self.mode.detach())
        return torch.where(inside, self._log_density(value), -math.inf)


class _FromHazard(_Elementwise):
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


class _Bounded(_Elementwise):
    """A number between two parameters, low and high."""

    low: Tensor
    high: Tensor

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        # The ends stay attached, so that it shows when a trainable parameter moves the support.
        return constraints.interval(self.low, self.high)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.low.dtype, device=self.low.device)
        epsilon = torch.finfo(uniform.dtype).eps
        # The density may be zero at the ends, and round-off may lead beyond them.
        value: Tensor = self.icdf(uniform.clamp_(epsilon, 1 - epsilon))
        return value.clamp(self.low, self.high)

    def _clamped(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value.clamp(self.low, self.high)


class Triangular(_Bounded):
    """A density that rises linearly from low to mode and falls linearly from there to high.

    p(mode) = 2 / (high - low), and p(low) = p(high) = 0.

    Args:
        low, high: [*batch], the ends.
        mode: [*batch], from low to high, both allowed.

    Raises:
        ValueError: low is not below high, or the mode is not between them.

    Example:
        >>> Triangular(torch.tensor(0.0), torch.tensor(4.0), torch.tensor(2.0)).variance
        tensor(0.6667)

    Source: Johnson, Kotz and Balakrishnan (1995), volume 2, chapter 26.
    """

    names = ("low", "high", "mode")
    mode = cast(Tensor, None)  # a parameter takes the place of torch's read-only property

    def __init__(
        self, low: Number, high: Number, mode: Number, validate_args: bool | None = None
    ) -> None:
        super().__init__(low, high, mode, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {
            "low": constraints.less_than(self.high),
            "high": constraints.greater_than(self.low),
            "mode": constraints.interval(self.low, self.high),
        }

    @property
    def mean(self) -> Tensor:
        return (self.low + self.high + self.mode) / 3

    @property
    def variance(self) -> Tensor:
        width, left = self.high - self.low, self.mode - self.low
        return (width.square() - width * left + left.square()) / 18

    def cdf(self, value: Tensor) -> Tensor:
        value = self._clamped(value)
        rising, ratio, side = self._side(value)
        beyond = ratio.square() * side / (self.high - self.low)
        return torch.where(rising, beyond, 1 - beyond)

    def icdf(self, value: Tensor) -> Tensor:
        width, left = self.high - self.low, self.mode - self.low
        rising = value * width < left
        # Choose before the root: its slope is infinite at the end that is not chosen.
        root = (width * torch.where(rising, value * left, (1 - value) * (width - left))).sqrt()
        return torch.where(rising, self.low + root, self.high - root)

    def _log_density(self, value: Tensor) -> Tensor:
        _, ratio, _ = self._side(value)
        return math.log(2) + ratio.log() - (self.high - self.low).log()

    def _side(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether left of the mode, p(value) / p(mode), and the length of that side."""
        rising, peak = value < self.mode, value == self.mode
        distance = torch.where(rising, value - self.low, self.high - value)
        side = torch.where(rising, self.mode - self.low, self.high - self.mode)
        # A side of length zero holds nothing but the mode.
        return rising, distance.masked_fill(peak, 1.0) / side.masked_fill(peak, 1.0), side


class Reciprocal(_Bounded):
    """A positive number whose logarithm is uniform (log-uniform).

    p(x) = 1 / (x · log(high / low)) for low ≤ x ≤ high.

    Args:
        low, high: [*batch], the ends, positive.

    Raises:
        ValueError: low is not positive, or not below high.

    Example:
        >>> Reciprocal(torch.tensor(1.0), torch.tensor(100.0)).icdf(torch.tensor(0.5))
        tensor(10.)

    Source: Hamming (1970), On the distribution of numbers.
    """

    names = ("low", "high")

    def __init__(self, low: Number, high: Number, validate_args: bool | None = None) -> None:
        super().__init__(low, high, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"low": constraints.positive, "high": constraints.greater_than(self.low)}

    @property
    def mean(self) -> Tensor:
        return (self.high - self.low) / self._log_ratio

    @property
    def mode(self) -> Tensor:
        return self.low

    @property
    def variance(self) -> Tensor:
        return self.mean * ((self.high + self.low) / 2 - self.mean)

    def cdf(self, value: Tensor) -> Tensor:
        return (self._clamped(value) / self.low).log() / self._log_ratio

    def icdf(self, value: Tensor) -> Tensor:
        return self.low * (value * self._log_ratio).exp()

    def _log_density(self, value: Tensor) -> Tensor:
        return -value.log() - self._log_ratio.log()

    @property
    def _log_ratio(self) -> Tensor:
        # log(high / low), precise for neighbouring ends, and without overflow for distant ones
        root = self.low.sqrt()
        return 2 * torch.log1p((self.high - self.low) / (root * (self.high.sqrt() + root)))


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
