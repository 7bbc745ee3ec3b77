"""All parameters of a fit in few tensors, in the order of the optimizer's groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.optim import Optimizer

from ppl_vi.checkpoints import State
from ppl_vi.compilation.updates import Update, update_of
from ppl_vi.stepping.moments import lay_into, settled
from ppl_vi.stepping.optimization import Stepper, TorchStepper

_LARGE = 50_000
"""Entries of a parameter that is a piece by itself: a copy of its gradient takes as long as a step."""


class Piece(NamedTuple):
    """Parameters that lie in one tensor and are updated together: neighbours in a group.

    Attributes:
        parameters: their numbers.
        group: the number of the optimizer's group.
        update: the group's.
    """

    parameters: tuple[int, ...]
    group: int
    update: Update


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
        pieces: which of them lie in one tensor.
        flat: the values, ``[size of the piece]`` each.
        states: of the optimizer, piece by piece, likewise.
        updates: how many were made.
    """

    def __init__(self, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self.live: list[Tensor] = []
        self.pieces: list[Piece] = []
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._optimizer = optimizer
        for number, group in enumerate(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in names]
            update = update_of(optimizer, group)
            if update is not None:
                first = len(self.live)
                self.live += own
                self.pieces += [Piece(numbers, number, update) for numbers in _cut(own, first)]
        self._names = [names[id(parameter)] for parameter in self.live]
        self.read()
        self._take_over([optimizer.state.get(parameter, {}) for parameter in self.live])

    def read(self) -> None:
        """Take the values of the live parameters, which a callback may have changed."""
        # A copy: of one parameter alone its own memory is given.
        self.flat = tuple(_flatten_dense_tensors(own).clone() for own in self._own())

    def write(self, flat: Sequence[Tensor], states: Sequence[Tensor], updates: int) -> None:
        """Keep the values after so many updates, and lay them into the live parameters."""
        self.flat, self.states = tuple(flat), tuple(states)
        self.updates += updates
        for own, values in zip(self._own(), flat, strict=True):
            torch._foreach_copy_(own, _unflatten_dense_tensors(values, own))

    def settle(self) -> None:
        """Make zeros of moments that have all but vanished."""
        states = iter(self.states)
        kept: list[Tensor] = []
        for piece in self.pieces:
            own = {name: next(states) for name in piece.update.names}
            kept += (own | settled(own)).values()
        self.states = tuple(kept)

    def _own(self) -> list[list[Tensor]]:
        """The live parameters of each piece, out of sight of gradients."""
        return [[self.live[i].detach() for i in piece.parameters] for piece in self.pieces]

    def _take_over(self, moments: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the moments of each parameter; zeros before the first step."""
        self.updates = max([0, *(int(own.get("step", 0)) for own in moments)])
        pairs = list(zip(self.live, moments, strict=True))
        self.states = tuple(
            self._joined(piece, [own.get(name, torch.zeros_like(live)) for live, own in pairs])
            for piece in self.pieces
            for name in piece.update.names
        )

    def _joined(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        """The entries of a piece's parameters, in a tensor of their own."""
        device = self.live[0].device  # moments from a file are elsewhere, perhaps
        return torch.cat([tensors[i].detach().reshape(-1).to(device) for i in piece.parameters])

    def _split(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """By parameter, what lies in the tensors of the pieces."""
        every = zip(self.pieces, flat, strict=True)
        return [part for piece, own in every for part in split(own, self._shapes(piece))]

    def _shapes(self, piece: Piece) -> list[torch.Size]:
        return [self.live[i].shape for i in piece.parameters]

    def saved(self) -> State:
        """Parameters and moments by name, as a stepper gives them."""
        moments: dict[str, dict[str, Tensor]] = {name: {} for name in self._names}
        states = iter(self.states)
        for piece in self.pieces:
            for kind in piece.update.names:
                parts = split(next(states), self._shapes(piece))
                for i, part in zip(piece.parameters, parts, strict=True):
                    moments[self._names[i]][kind] = part
            for i in piece.parameters:
                moments[self._names[i]]["step"] = torch.tensor(float(self.updates))
        return {
            "values": dict(zip(self._names, self._split(self.flat), strict=True)),
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


def split(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The entries of a flat tensor in these shapes."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _cut(parameters: Sequence[Tensor], first: int) -> list[tuple[int, ...]]:
    """The numbers of neighbours, counted from the first; a large parameter is alone."""
    found: list[tuple[int, ...]] = []
    alone = True
    for number, parameter in enumerate(parameters, first):
        large = parameter.numel() >= _LARGE
        if alone or large:
            found.append(())
        found[-1] = (*found[-1], number)
        alone = large
    return found
