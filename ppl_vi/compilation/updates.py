"""Optimizers as functions of flat tensors: torch's Adam, AdamW and SGD, to the letter.

All parameters of a fit lie in one tensor, and so does each kind of state, so that one kernel updates
them all. Hyperparameters are read from the optimizer that the user made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ppl_vi.stepping.adam import adam
from ppl_vi.stepping.bare_steps import bare_step


@dataclass(frozen=True)
class Update(ABC):
    """One group of parameters and its hyperparameters.

    Attributes:
        options: the group's, as torch's optimizers name them; the learning rate comes with each step.
    """

    options: Mapping[str, Any]

    names: tuple[str, ...] = ()
    """Of the states, as torch's optimizer names them."""

    @abstractmethod
    def __call__(
        self,
        flat: Tensor,
        gradient: Tensor,
        states: Sequence[Tensor],
        updates: Tensor,
        rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """The parameters and the states after a step.

        Args:
            flat: ``[size]``, the parameters.
            gradient: ``[size]``.
            states: each ``[size]``; zeros before the first step.
            updates: the number of steps before this one, a float64 scalar.
            rate: the learning rate, a float64 scalar.
        """


class AdamUpdate(Update):
    """Adam, with weight decay added to the gradient, or decoupled as in AdamW."""

    def __call__(
        self,
        flat: Tensor,
        gradient: Tensor,
        states: Sequence[Tensor],
        updates: Tensor,
        rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        options = self.options
        decay = options["weight_decay"]
        if options["maximize"]:
            gradient = -gradient
        if decay and options["decoupled_weight_decay"]:
            flat = flat * (1 - rate * decay).to(flat.dtype)
        elif decay:
            gradient = torch.add(gradient, flat, alpha=decay)
        first, second = states
        step, first, second = adam(
            gradient, first, second, updates, rate, options["betas"], options["eps"]
        )
        return flat - step, [first, second]


class MomentumUpdate(Update):
    """Stochastic gradient descent with momentum, Nesterov's if so chosen."""

    def __call__(
        self,
        flat: Tensor,
        gradient: Tensor,
        states: Sequence[Tensor],
        updates: Tensor,
        rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        options = self.options
        if options["maximize"]:
            gradient = -gradient
        if options["weight_decay"]:
            gradient = torch.add(gradient, flat, alpha=options["weight_decay"])
        momentum, moved = options["momentum"], []
        if states:
            # torch starts the average with the first gradient, undampened.
            later = momentum * states[0] + (1 - options["dampening"]) * gradient
            average = torch.where(updates == 0, gradient, later)
            gradient = gradient + momentum * average if options["nesterov"] else average
            moved = [average]
        return flat - rate.to(flat.dtype) * gradient, moved


def update_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Update | None:
    """How a group of an optimizer is updated; ``None`` where only torch knows."""
    left_out = ("params", "lr", "initial_lr")
    options = {name: value for name, value in group.items() if name not in left_out}
    if bare_step(optimizer) is None:
        return None
    # Subclasses may do anything.
    if type(optimizer) in (Adam, AdamW) and not options["amsgrad"]:
        plain = all(isinstance(beta, float) for beta in options["betas"])
        return AdamUpdate(options, ("exp_avg", "exp_avg_sq")) if plain else None
    if type(optimizer) is SGD:
        return MomentumUpdate(options, ("momentum_buffer",) if options["momentum"] else ())
    return None
