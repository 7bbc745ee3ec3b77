"""Distributions between two ends that their parameters move."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.distributions.elementwise import Elementwise, Number, Shape


class _Bounded(Elementwise):
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
