"""One whole step as a function of tensors, and many steps as one graph.

A step gathers its rows, runs the captured program, checks every number, and updates the flat
parameters. Steps follow one another inside torch's ``while_loop`` operator, so that a block of them is
a single call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.sharing import with_shared_values
from ppl_vi.compilation.updates import Update

_LARGE = 50_000
"""Entries of a parameter updated by itself: a copy of its gradient would take as long as its update."""


class Carried(NamedTuple):
    """What one step hands to the next; few tensors, since each costs as much as a small step's sums.

    Attributes:
        position: ``[2]``, the number of the next step in its block, and how many of those before it
            moved the parameters; where fewer did, a number was not finite.
        record: ``[2, block]``, the losses, and whether all numbers of the step were finite.
        flat: ``[size]``, the parameters.
        states: ``[size]`` each, of the optimizer, group by group.
        buffers: tensors that the program changes.
    """

    position: Tensor
    record: Tensor
    flat: Tensor
    states: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All in a row."""
        return [self.position, self.record, self.flat, *self.states, *self.buffers]

    def of(self, tensors: Sequence[Tensor]) -> Carried:
        """Others in such a row."""
        position, record, flat, *others = tensors
        states = len(self.states)
        return Carried(position, record, flat, tuple(others[:states]), tuple(others[states:]))


class Fixed(NamedTuple):
    """What stays as it is in a block.

    Attributes:
        num_steps: how many steps to take, an int64 scalar.
        updates: made before this block, a float64 scalar.
        rates: ``[block, groups + scheduled]``, the learning rate of each update, and what the program
            reads in each step.
        rows: ``[block, batch]``, which rows of the tables each step takes; empty without batches.
        tables: the data, by input: whole, or rows to take from.
        held: other tensors that the program reads.
    """

    num_steps: Tensor
    updates: Tensor
    rates: Tensor
    rows: Tensor
    tables: tuple[Tensor, ...]
    held: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All in a row."""
        return [self.num_steps, self.updates, self.rates, self.rows, *self.tables, *self.held]

    def of(self, tensors: Sequence[Tensor]) -> Fixed:
        """Others in such a row."""
        num_steps, updates, rates, rows, *others = tensors
        tables = len(self.tables)
        own = tuple(others[:tables]), tuple(others[tables:])
        return Fixed(num_steps, updates, rates, rows, *own)


@dataclass(frozen=True, eq=False)
class Step:
    """One step.

    Attributes:
        graph: (parameters, data, held and buffers in its own order) to (loss, gradients, buffers).
        parameters: by parameter of the graph, its place in the flat tensor; ``None`` for one that the
            loss does not depend on, which is held.
        shapes: of the flat parameters, group after group.
        groups: how many entries each group of the optimizer has, and its update.
        gathered: by input, whether its table's rows are taken.
        num_others: how many tensors the graph takes after the data.
        changed: numbers of those among them that are buffers.
        scheduled: number of that among them which is another in each step, if any.
        skips: whether a step whose numbers are not finite moves nothing. Else the loop ends with it,
            and whoever runs the block goes back to the step before.
    """

    graph: Callable[..., Any] = field(repr=False)
    parameters: tuple[int | None, ...]
    shapes: tuple[torch.Size, ...]
    groups: tuple[tuple[int, Update], ...]
    gathered: tuple[bool, ...]
    num_others: int
    changed: tuple[int, ...]
    scheduled: int | None
    skips: bool

    def __call__(self, carried: Carried, fixed: Fixed) -> Carried:
        """The state after one more step."""
        loss, gradients, buffers = self._evaluated(carried, fixed)
        finite = torch.isfinite(loss)
        for gradient in gradients:
            finite = finite & torch.isfinite(gradient).all()
        flat, states = self._updated(carried, fixed, gradients)
        here = torch.arange(carried.record.shape[1], device=loss.device) == carried.position[0]
        told = torch.stack([loss.double(), finite.double()])
        return Carried(
            position=carried.position + torch.stack([torch.ones_like(finite), finite]),
            record=torch.where(here, told.unsqueeze(1), carried.record),
            flat=self._kept(finite, flat, carried.flat),
            states=tuple(
                self._kept(finite, new, old)
                for new, old in zip(states, carried.states, strict=True)
            ),
            buffers=tuple(buffers),
        )

    def _kept(self, finite: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(finite, new, old) if self.skips else new

    def goes_on(self, carried: Carried, fixed: Fixed) -> Tensor:
        """Whether there is another step in the block."""
        step, moved = carried.position.unbind()
        left: Tensor = step < fixed.num_steps
        return left if self.skips else left & (moved == step)

    @cached_property
    def _pieces(self) -> list[list[int]]:
        """Which parameters are updated together: neighbours in a group, but for large ones."""
        pieces: list[list[int]] = []
        ends = set(accumulate(size for size, _ in self.groups))
        done, alone = 0, True
        for number, shape in enumerate(self.shapes):
            large = shape.numel() >= _LARGE
            if alone or large or done in ends:
                pieces.append([])
            pieces[-1].append(number)
            done, alone = done + shape.numel(), large
        return pieces

    def _evaluated(
        self, carried: Carried, fixed: Fixed
    ) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
        sizes = [shape.numel() for shape in self.shapes]
        parts = zip(carried.flat.split(sizes), self.shapes, strict=True)
        chunks = [part.view(shape) for part, shape in parts]
        data = fixed.tables
        if any(self.gathered):
            rows = fixed.rows.index_select(0, carried.position[:1]).squeeze(0)
            data = tuple(
                table.index_select(0, rows) if gathered else table
                for table, gathered in zip(data, self.gathered, strict=True)
            )
        held, buffers = iter(fixed.held), iter(carried.buffers)
        now = iter(self._scheduled_now(carried, fixed))
        parameters = [next(held) if i is None else chunks[i] for i in self.parameters]
        sources = {self.scheduled: now} | dict.fromkeys(self.changed, buffers)
        others = [next(sources.get(i, held)) for i in range(self.num_others)]
        loss, *rest = self.graph(*parameters, *data, *others)
        own = iter(rest)  # the graph's order of parameters, which need not be that of the groups
        gradients = {i: next(own).reshape(-1) for i in self.parameters if i is not None}
        pieces = [[gradients[i] for i in piece] for piece in self._pieces]
        return loss, list(map(_joined, pieces)), list(own)

    def _scheduled_now(self, carried: Carried, fixed: Fixed) -> list[Tensor]:
        """What the program reads in this step, if anything; steps that move nothing count."""
        if self.scheduled is None:
            return []
        row = fixed.rates.index_select(0, carried.position[:1]).squeeze(0)
        return [row[len(self.groups) :]]

    def _updated(
        self, carried: Carried, fixed: Fixed, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        rates = fixed.rates.index_select(0, carried.position[1:]).squeeze(0)
        updates = fixed.updates + carried.position[1]
        flats: list[Tensor] = []
        moved, states, left = list[Tensor](), iter(carried.states), iter(gradients)
        start = 0
        for number, (size, update) in enumerate(self.groups):
            before = [next(states) for _ in update.names]
            if size == 0:
                moved += before
                continue
            after: list[list[Tensor]] = [[] for _ in update.names]
            done = 0
            while done < size:
                gradient = next(left)
                own = slice(done, done + len(gradient))
                flat = carried.flat[start : start + len(gradient)]
                flat, new = update(flat, gradient, [s[own] for s in before], updates, rates[number])
                flats.append(flat)
                for every, state in zip(after, new, strict=True):
                    every.append(state)
                start, done = start + len(gradient), done + len(gradient)
            moved += map(_joined, after)
        return _joined(flats), moved


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def looped(step: Step, carried: Carried, fixed: Fixed) -> GraphModule:
    """Steps until the block is done, as one graph from the tensors of both to those of the first."""
    from torch._higher_order_ops.while_loop import while_loop_op
    from torch.fx.experimental.proxy_tensor import make_fx

    first, others = carried.tensors(), fixed.tensors()

    def goes_on(*tensors: Tensor) -> Tensor:
        return step.goes_on(carried.of(tensors[: len(first)]), fixed.of(tensors[len(first) :]))

    def once_more(*tensors: Tensor) -> list[Tensor]:
        after = step(carried.of(tensors[: len(first)]), fixed.of(tensors[len(first) :]))
        return [tensor.clone() for tensor in after.tensors()]

    def block(*tensors: Tensor) -> Any:
        loop: Any = while_loop_op
        return loop(goes_on, once_more, tensors[: len(first)], tensors[len(first) :])

    with torch.no_grad():
        graph = make_fx(block, tracing_mode="fake")(*first, *others)
    for part in graph.children():
        if isinstance(part, GraphModule):
            with_shared_values(part)
    return graph
