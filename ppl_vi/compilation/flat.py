"""All parameters of a fit in one tensor, in the order of the optimizer's groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vi.checkpoints import State
from ppl_vi.compilation.updates import Update, update_of
from ppl_vi.stepping.moments import lay_into
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
        parameters: live ones by name, which ``can_be_flat``.
        optimizer: made by the user; it tells groups and hyperparameters.

    Attributes:
        live: the parameters, group after group.
        groups: how many entries each group has, and how it is updated.
        flat: ``[size]``.
        states: ``[size of the group]`` each, group by group.
        updates: how many were made.
    """

    def __init__(self, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self.live: list[Tensor] = []
        self.groups: list[tuple[int, Update]] = []
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._optimizer = optimizer
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if id(parameter) in names]
            update = update_of(optimizer, group)
            if update is not None:
                self.live += own
                self.groups.append((sum(parameter.numel() for parameter in own), update))
        self._names = [names[id(parameter)] for parameter in self.live]
        self.read()
        self._take_over([optimizer.state.get(parameter, {}) for parameter in self.live])

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

    def _take_over(self, moments: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the moments of each parameter; zeros before the first step."""
        self.updates = max([0, *(int(own.get("step", 0)) for own in moments)])
        states: list[Tensor] = []
        for (_, update), own in zip(self.groups, self._by_group(), strict=True):
            for name in update.names:
                known = [
                    moments[i].get(name, torch.zeros_like(self.live[i])).to(self.flat.device)
                    for i in own
                ]
                flat = torch.cat([*(tensor.reshape(-1) for tensor in known), self.flat[:0]])
                states.append(flat.detach())
        self.states = tuple(states)

    def _by_group(self) -> list[list[int]]:
        """The numbers of the live parameters of each group."""
        left, found = list(range(len(self.live))), []
        for size, _ in self.groups:
            own: list[int] = []
            while sum(self.live[i].numel() for i in own) < size:
                own.append(left.pop(0))
            found.append(own)
        return found

    def saved(self) -> State:
        """Parameters and moments by name, as a stepper gives them."""
        moments: dict[str, dict[str, Tensor]] = {name: {} for name in self._names}
        states = iter(self.states)
        for (_, update), own in zip(self.groups, self._by_group(), strict=True):
            for kind in update.names:
                parts = self.split(next(states), [self.live[i] for i in own])
                for i, part in zip(own, parts, strict=True):
                    moments[self._names[i]][kind] = part
            for i in own:
                moments[self._names[i]]["step"] = torch.tensor(float(self.updates))
        return {
            "values": dict(zip(self._names, self.split(self.flat, self.live), strict=True)),
            # The optimizer's own first step starts them.
            "moments": moments if self.updates else {},
        }

    def bring_back(self, state: State) -> None:
        """Bring parameters and moments back to what ``saved`` gave, here or in a stepper."""
        lay_into(dict(zip(self._names, self.live, strict=True)), state["values"])
        self.read()
        self._take_over([state["moments"].get(name, {}) for name in self._names])

    def hand_over(self) -> None:
        """Give the optimizer its moments, for it to go on with."""
        moments = self.saved()["moments"]
        for name, parameter in zip(self._names, self.live, strict=True):
            if name in moments:
                self._optimizer.state[parameter] = {n: v.clone() for n, v in moments[name].items()}

    @staticmethod
    def split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The flat tensor in the shapes of others."""
        parts = flat.split([tensor.numel() for tensor in like])
        return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
