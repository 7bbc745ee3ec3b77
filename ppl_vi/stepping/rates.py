"""The default optimizer, and how its learning rate falls."""

from __future__ import annotations

from itertools import accumulate, repeat
from operator import mul

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

INITIAL_RATE, FINAL_RATE = 0.05, 5e-6


def default_optimizer(
    parameters: list[Tensor], steps: int, staged: bool, rate: float
) -> LRScheduler:
    """Adam, with a rate that falls geometrically over the planned steps, or that waits to be told.

    Args:
        parameters: that it moves.
        steps: how many are planned.
        staged: whether the rate stays where it is until it is told to fall.
        rate: of the first step.
    """
    adam = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    if staged:
        return StagedRate(adam)
    return GeometricRate(adam, (FINAL_RATE / rate) ** (1 / max(1, steps)))


class GeometricRate(LRScheduler):
    """A learning rate that each step multiplies by the same factor.

    A block of steps asks for all its rates at once: torch's own schedules take as long for a step of
    theirs as a small compiled step takes.

    Args:
        optimizer: whose rate it is.
        factor: of each step.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 1.0) -> None:
        self._decay = 1.0  # torch's constructor takes a step
        super().__init__(optimizer)
        self._decay = factor

    def get_lr(self) -> list[float | Tensor]:
        """The rate of the next step, for each group."""
        return [group["lr"] * self._decay for group in self.optimizer.param_groups]

    def ahead(self, count: int) -> Tensor:
        """The rates of the next ``count`` steps, ``[count, groups]``; none is taken."""
        rates = [
            list(accumulate(repeat(self._decay, count - 1), mul, initial=float(group["lr"])))
            for group in self.optimizer.param_groups
        ]
        return torch.tensor(rates, dtype=torch.float64).T

    def follow(self, count: int) -> None:
        """Take so many steps at once."""
        for group in self.optimizer.param_groups:
            for _ in range(count):  # a power would be rounded otherwise
                group["lr"] *= self._decay
        self._last_lr: list[float | Tensor] = [g["lr"] for g in self.optimizer.param_groups]
        self.last_epoch += count
        self._step_count += count


class StagedRate(GeometricRate):
    """A learning rate that stays until it is told to become another, or to fall.

    Attributes:
        falling: whether it falls geometrically, step by step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.falling = False

    @property
    def rate(self) -> float:
        """The present rate, also where it was slowed down from outside."""
        return float(self.optimizer.param_groups[0]["lr"])

    def become(self, rate: float) -> None:
        """Take this rate from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def fall(self, last: float, steps: int) -> None:
        """Fall from the present rate to a last one in so many steps."""
        self.falling, self._decay = True, (last / self.rate) ** (1 / max(1, steps))
