"""All parameters of a fit in one tensor, in the order of the optimizer's groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vi.compilation.updates import Update, update_of
from ppl_vi.stepping.optimization import Stepper, TorchStepper


def can_be_flat(parameters: Sequence[Tensor], stepper: Stepper) -> bool:
    """Whether an optimizer's steps on these parameters are known here."""
    if not isinstance(stepper, TorchStepper) or not stepper.foreseeable:
        return False
    known = (update_of(stepper.optimizer, group) for group in stepper.optimizer.param_groups)
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    plain = all(p.is_floating_point() and p.is_contiguous() for p in parameters)
    moved = [id(p) for group in stepper.optimizer.param_groups for p in group["params"]]
    once = all(moved.count(id(parameter)) == 1 for parameter in parameters)
    return all(update is not None for update in known) and len(kinds) == 1 and plain and once


class FlatParameters:
    """The parameters, and what the optimizer keeps for each of them.

    Args:
        parameters: live ones, which ``can_be_flat``.
        optimizer: made by the user; it tells groups and hyperparameters.

    Attributes:
        live: the parameters, group after group.
        groups: how many entries each group has, and how it is updated.
        flat: ``[size]``.
        states: ``[size of the group]`` each, group by group.
        updates: how many were made.
    """

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
        self.live: list[Tensor] = []
        self.groups: list[tuple[int, Update]] = []
        self.states: tuple[Tensor, ...] = ()
        wanted = {id(parameter) for parameter in parameters}
        self._optimizer = optimizer
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if id(parameter) in wanted]
            update = update_of(optimizer, group)
            if update is not None:
                self.live += own
                self.groups.append((sum(parameter.numel() for parameter in own), update))
        self.read()
        self.updates = 0
        self._take_over()

    def read(self) -> None:
        """Take the values of the live parameters, which a callback may have changed."""
        with torch.no_grad():
            self.flat = torch.cat([parameter.reshape(-1) for parameter in self.live])

    def write(self, flat: Tensor, states: tuple[Tensor, ...], updates: int) -> None:
        """Keep the values after so many updates, and lay them into the live parameters."""
        self.flat, self.states = flat, states
        self.updates += updates
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.split(flat, self.live))

    def _take_over(self) -> None:
        """Go on from the states that the optimizer has; zeros before its first step."""
        live = iter(self.live)
        for size, update in self.groups:
            own = self._next_of(live, size)
            kept = [self._optimizer.state.get(parameter, {}) for parameter in own]
            self.updates = max([self.updates, *(int(state.get("step", 0)) for state in kept)])
            for name in update.names:
                pairs = zip(kept, own, strict=True)
                known = [state.get(name, torch.zeros_like(p)).reshape(-1) for state, p in pairs]
                self.states += (torch.cat([*known, self.flat.new_zeros(0)]),)

    @staticmethod
    def _next_of(live: Iterator[Tensor], size: int) -> list[Tensor]:
        """The parameters of a group of so many entries."""
        own: list[Tensor] = []
        while sum(parameter.numel() for parameter in own) < size:
            own.append(next(live))
        return own

    def saved(self) -> Callable[[], None]:
        """What brings parameters and states back to where they are now."""
        flat, states, updates = self.flat, self.states, self.updates

        def restore() -> None:
            self.write(flat, states, updates - self.updates)

        return restore

    def hand_over(self) -> None:
        """Give the optimizer its states, for it to go on with."""
        if not self.updates:  # its own first step starts them
            return
        live, states = iter(self.live), iter(self.states)
        for (size, update), _ in zip(self.groups, self._optimizer.param_groups, strict=True):
            own = self._next_of(live, size)
            kept = {name: self.split(next(states), own) for name in update.names}
            for number, parameter in enumerate(own):
                state = {name: chunks[number].clone() for name, chunks in kept.items()}
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.updates)),
                    **state,
                }

    @staticmethod
    def split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The flat tensor in the shapes of others."""
        parts = flat.split([tensor.numel() for tensor in like])
        return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
