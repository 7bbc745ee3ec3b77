"""One whole step as a function of tensors, and many steps as one graph.

A step gathers its rows, runs the captured program, checks every number, and updates the flat
parameters. Steps follow one another inside torch's ``while_loop`` operator, so that a block of them is
a single call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.flat import Piece, split
from ppl_vi.compilation.sharing import with_shared_values


class Carried(NamedTuple):
    """What one step hands to the next; few tensors, since each costs as much as a small step's sums.

    Attributes:
        position: ``[2]``, the number of the next step in its block, and how many of those before it
            moved the parameters; where fewer did, a number was not finite.
        record: ``[2, block]``, the losses, and whether all numbers of the step were finite.
        buffers: tensors that the program changes.
        flat: ``[size]`` each, the parameters, piece by piece.
        states: of the optimizer, piece by piece, likewise.
    """

    position: Tensor
    record: Tensor
    buffers: tuple[Tensor, ...]
    flat: tuple[Tensor, ...]
    states: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All in a row."""
        return [self.position, self.record, *self.buffers, *self.flat, *self.states]

    def of(self, tensors: Sequence[Tensor]) -> Carried:
        """Others in such a row."""
        position, record, *others = tensors
        buffers, flat = len(self.buffers), len(self.buffers) + len(self.flat)
        own = tuple(others[:buffers]), tuple(others[buffers:flat]), tuple(others[flat:])
        return Carried(position, record, *own)


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
        pieces: which of them lie in one tensor.
        num_groups: of the optimizer.
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
    pieces: tuple[Piece, ...]
    num_groups: int
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
            buffers=tuple(buffers),
            flat=self._kept(finite, flat, carried.flat),
            states=self._kept(finite, states, carried.states),
        )

    def _kept(
        self, finite: Tensor, after: Sequence[Tensor], before: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        if not self.skips:
            return tuple(after)
        return tuple(torch.where(finite, *pair) for pair in zip(after, before, strict=True))

    def goes_on(self, carried: Carried, fixed: Fixed) -> Tensor:
        """Whether there is another step in the block."""
        step, moved = carried.position.unbind()
        left: Tensor = step < fixed.num_steps
        return left if self.skips else left & (moved == step)

    def _evaluated(
        self, carried: Carried, fixed: Fixed
    ) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
        chunks: list[Tensor] = []
        for piece, flat in zip(self.pieces, carried.flat, strict=True):
            chunks += split(flat, [self.shapes[i] for i in piece.parameters])
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
        pieces = [[gradients[i] for i in piece.parameters] for piece in self.pieces]
        return loss, list(map(_joined, pieces)), list(own)

    def _scheduled_now(self, carried: Carried, fixed: Fixed) -> list[Tensor]:
        """What the program reads in this step, if anything; steps that move nothing count."""
        if self.scheduled is None:
            return []
        row = fixed.rates.index_select(0, carried.position[:1]).squeeze(0)
        return [row[self.num_groups :]]

    def _updated(
        self, carried: Carried, fixed: Fixed, gradients: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        rates = fixed.rates.index_select(0, carried.position[1:]).squeeze(0)
        updates = fixed.updates + carried.position[1]
        flats: list[Tensor] = []
        states: list[Tensor] = []
        before = iter(carried.states)
        for piece, flat, gradient in zip(self.pieces, carried.flat, gradients, strict=True):
            own = [next(before) for _ in piece.update.names]
            flat, own = piece.update(flat, gradient, own, updates, rates[piece.group])
            flats.append(flat)
            states += own
        return flats, states


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
