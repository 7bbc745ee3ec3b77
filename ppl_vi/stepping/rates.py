"""The default optimizer, and how its learning rate falls."""

from __future__ import annotations

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
    return torch.optim.lr_scheduler.ExponentialLR(adam, (FINAL_RATE / rate) ** (1 / max(1, steps)))


class StagedRate(LRScheduler):
    """A learning rate that stays until it is told to become another, or to fall.

    Attributes:
        falling: whether it falls geometrically, step by step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.falling, self._decay = False, 1.0
        super().__init__(optimizer)

    @property
    def rate(self) -> float:
        """The present rate, also where it was slowed down from outside."""
        return float(self.optimizer.param_groups[0]["lr"])

    def get_lr(self) -> list[float | Tensor]:
        """The rate of the next step, for each group."""
        return [group["lr"] * self._decay for group in self.optimizer.param_groups]

    def become(self, rate: float) -> None:
        """Take this rate from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def fall(self, last: float, steps: int) -> None:
        """Fall from the present rate to a last one in so many steps."""
        self.falling, self._decay = True, (last / self.rate) ** (1 / max(1, steps))
