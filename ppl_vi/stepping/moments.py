"""The state of torch's optimizers: copied, brought back, made slower."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_RATES = ("lr", "initial_lr", "eta")


def saved(parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> Callable[[], None]:
    """What brings parameters and the optimizers' moments back to where they are now.

    Args:
        parameters: by name.
        optimizers: that move them; their hyperparameters stay as they will be.
    """
    values = [(live, live.detach().clone()) for live in parameters.values()]
    moments = [
        (each, {p: copy.deepcopy(own) for p, own in each.state.items()}) for each in optimizers
    ]

    def restore() -> None:
        with torch.no_grad():
            for live, value in values:
                live.copy_(value)
        for optimizer, state in moments:
            optimizer.state.clear()
            optimizer.state.update({p: copy.deepcopy(own) for p, own in state.items()})

    return restore


def slow_down(made: Optimizer | LRScheduler, factor: float) -> None:
    """Multiply the learning rates of an optimizer, and those that a scheduler around it will set."""
    optimizer: Any = getattr(made, "optimizer", made)
    for group in optimizer.param_groups:
        for rate in _RATES:
            if rate in group:
                group[rate] = group[rate] * factor
    _slow_schedule(made, factor)


def _slow_schedule(made: Any, factor: float) -> None:
    for name in ("base_lrs", "min_lrs", "max_lrs"):
        if hasattr(made, name):
            setattr(made, name, [rate * factor for rate in getattr(made, name)])
    for inner in getattr(made, "_schedulers", ()):
        _slow_schedule(inner, factor)
