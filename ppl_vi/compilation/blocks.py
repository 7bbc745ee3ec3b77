"""Take the steps of a fit in blocks, compiled or one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.building import Builds, Compiled
from ppl_vi.compilation.capturing import Captured, close, repeatable_draws
from ppl_vi.compilation.divided import with_divided_products
from ppl_vi.compilation.flat import FlatParameters
from ppl_vi.compilation.gradients import GradientGraph, GradientGraphs
from ppl_vi.compilation.graphs import functional
from ppl_vi.compilation.products import with_written_products
from ppl_vi.compilation.stepping import Carried, Fixed, Step, looped
from ppl_vi.data.streaming import Stream
from ppl_vi.errors import CompileError
from ppl_vi.stepping.bare_steps import bare_step
from ppl_vi.stepping.moments import SETTLED_EVERY
from ppl_vi.stepping.optimization import Stepper, TorchStepper
from ppl_vi.stepping.runners import EagerRunner, Taken

BLOCK = 100
"""Steps in a block. A block begins at every multiple of it, wherever a run is cut."""

_CLOSE = 1e-3
_NEARBY = 1e-3
"""Part of a parameter; roundings are a thousandth of that."""
_LATER, _LATER_WATCHED = 100, 2
"""A check costs as much as a thousand compiled steps, so they become rare; less so, and from the first
step on, where callbacks are called after every step, since they are what changes a program most."""


@dataclass(frozen=True, eq=False)
class _Shape:
    """All there is for batches of one size.

    Attributes:
        graph: loss and gradients.
        step: one step.
        tables: the data, by input of the graph.
        compiled: the loop; ``None`` where its steps are taken one operation after the other.
    """

    graph: GradientGraph
    step: Step
    tables: tuple[Tensor, ...]
    compiled: Compiled | None = None

    def run(self, carried: Carried, fixed: Fixed) -> Carried:
        """Steps until the block is done."""
        if self.compiled is None:
            return self.plainly(carried, fixed)
        return carried.of(self.compiled([*carried.tensors(), *fixed.tensors()]))

    def plainly(self, carried: Carried, fixed: Fixed) -> Carried:
        """The same, one operation after the other."""
        with torch.no_grad():
            while self.step.goes_on(carried, fixed):
                carried = self.step(carried, fixed)
        return carried


class BlockRunner:
    """Takes captured steps in blocks, on data in memory.

    Args:
        graphs: captures loss and gradients.
        eager: takes single steps, from the same batches and with the same optimizer.
        stops: whether a number that is not finite ends the fit.
        builds: compiles, and counts; ``None`` to take one operation after the other.
        worth: whether to compile a graph for that part of all batches which have its size.

    Raises:
        CompileError: the programs, the optimizer or the compiler do not allow it.
    """

    block = BLOCK

    def __init__(
        self,
        graphs: GradientGraphs,
        eager: EagerRunner,
        stops: bool,
        builds: Builds | None,
        worth: Callable[[GraphModule, float], bool],
    ) -> None:
        self._graphs, self._eager = graphs, eager
        self._builds, self._worth = builds, worth
        self._stream: Stream = eager.stream
        self._stepper = _of_torch(eager.stepper)
        self._skips, self._scheduled = not stops, graphs.objective.scheduled
        self._shapes: dict[int, _Shape] = {}
        usual = self._stream.usual
        graph = graphs.of(self._stream.batch(usual))
        live = {graphs.names[i]: graph.parameters[i] for i in graph.used}
        self._flat = FlatParameters(live, self._stepper.optimizer)
        self._options = self._stepper.options()
        self._next_check = 1
        device = self._flat.live[0].device
        # Every block begins with them, and changes neither.
        self._begun = torch.zeros(2, dtype=torch.int64, device=device)
        self._blank = torch.zeros(2, BLOCK, dtype=torch.float64, device=device)
        shape = self._plain(usual)
        self._shapes[len(usual)] = self._compiled(shape, usual, builds) if builds else shape
        for rows in self._stream.sizes():
            self._shape(rows)

    def advance(self, count: int) -> list[Taken]:
        """Take that many steps, or fewer if the next ones cannot be captured."""
        self._graphs.refuse_thawed()
        done = self._eager.done
        if done >= self._next_check:
            self._next_check = done * (_LATER if count > 1 else _LATER_WATCHED)
            self._graphs.check(self._stream.batch(self._stream.usual), done)
        if self._stepper.options() != self._options:
            raise CompileError("the optimizer's options have changed")
        if bare_step(self._stepper.optimizer) is None:
            raise CompileError("someone listens to the optimizer's steps")
        taken: list[Taken] = []
        groups = self._stream.runs(count)
        for number, rows in enumerate(groups):
            try:
                new = self._run(self._shape(rows[0]), rows)
            except CompileError:
                self._stream.give_back(groups[number:])
                if taken:
                    break
                raise
            taken += new
            if len(new) < len(rows):  # the fit went back, and goes on with smaller steps
                self._stream.give_back([rows[len(new) :], *groups[number + 1 :]])
                break
        return taken

    def hand_over(self) -> None:
        """Give the optimizer its moments, for steps one by one, or for a file."""
        self._flat.hand_over()

    def _run(self, shape: _Shape, rows: Sequence[Tensor]) -> list[Taken]:
        self._flat.read()
        rollback = self._eager.rollback
        carried, fixed = self._block(shape, rows, self._stepper.rates(len(rows)))
        with repeatable_draws() as again:
            try:
                after = shape.run(carried, fixed)
            except RuntimeError as error:
                again()
                self._stepper.use_rates(0)
                reason = str(error).splitlines()[0]
                raise CompileError(f"its operations cannot be repeated ({reason})") from error
            step, moved = after.position.tolist()
            failed = moved < step and not self._skips
            if rollback is not None and moved and rollback.is_due(self._eager.done):
                rollback.keep(self._flat.saved())
            if failed and not (rollback is not None and rollback.is_possible):
                again()
                steps = fixed.num_steps.new_tensor(moved)
                self._keep(shape, shape.run(carried, fixed._replace(num_steps=steps)))
                self._eager.done += moved
                self._eager.fail(self._stream.batch(rows[moved]))
        self._eager.done += step
        if not failed:
            self._keep(shape, after)
            if self._eager.done % SETTLED_EVERY == 0:
                self._flat.settle()
        self._stepper.use_rates(moved)
        if failed and rollback is not None:
            rollback.go_back(self._flat.bring_back)
        losses, finite = after.record[:, :step].tolist()
        return list(zip(losses, map(bool, finite), strict=True))

    def _keep(self, shape: _Shape, after: Carried) -> None:
        self._flat.write(after.flat, after.states, int(after.position[1]))
        held = shape.graph.captured.held
        for number, value in zip(shape.step.changed, after.buffers, strict=True):
            held[number].detach().copy_(value)

    def _block(self, shape: _Shape, rows: Sequence[Tensor], rates: Tensor) -> tuple[Carried, Fixed]:
        """What a block of steps on these rows, at these learning rates, starts from."""
        flat, graph, step = self._flat, shape.graph, shape.step
        device, held = flat.live[0].device, graph.captured.held
        carried = Carried(
            self._begun,
            self._blank,
            tuple(held[i].detach().contiguous() for i in step.changed),
            flat.flat,
            flat.states,
        )
        unused = [graph.parameters[i] for i, place in enumerate(step.parameters) if place is None]
        varying = {*step.changed, step.scheduled}
        still = [tensor for i, tensor in enumerate(held) if i not in varying]
        if self._scheduled is not None:
            own = self._scheduled.rows(self._eager.done, len(rows))
            rates = torch.cat([rates, own], 1)
        rates = torch.constant_pad_nd(rates, (0, 0, 0, BLOCK - len(rows))).contiguous()
        index = torch.empty(BLOCK, len(rows[0]) if any(step.gathered) else 0, dtype=torch.int64)
        if any(step.gathered):
            torch.stack(list(rows), out=index[: len(rows)])
        fixed = Fixed(
            torch.tensor(len(rows), device=device),
            torch.tensor(float(flat.updates), dtype=torch.float64, device=device),
            rates.to(device),
            index.to(device),
            shape.tables,
            tuple(tensor.detach().contiguous() for tensor in (*unused, *still)),
        )
        return carried, fixed

    def _shape(self, rows: Tensor) -> _Shape:
        """What there is for batches of this size; captured once, compiled if that repays."""
        if len(rows) not in self._shapes:
            shape = self._plain(rows)
            share = self._stream.share(len(rows))
            if self._builds and self._worth(shape.graph.captured.graph, share):
                with suppress(CompileError):  # its few steps then run one operation after the other
                    shape = self._compiled(shape, rows, self._builds)
            self._shapes[len(rows)] = shape
        return self._shapes[len(rows)]

    def _plain(self, rows: Tensor) -> _Shape:
        graph = self._graphs.of(self._stream.batch(rows))
        if {id(graph.parameters[i]) for i in graph.used} != {id(p) for p in self._flat.live}:
            raise CompileError("the loss of another batch depends on other parameters")
        captured = graph.captured
        place = {id(parameter): i for i, parameter in enumerate(self._flat.live)}
        used = [place[id(p)] if i in graph.used else None for i, p in enumerate(graph.parameters)]
        tables, gathered = self._stream.tables(len(rows))
        tables = tuple(table.contiguous() for table in tables)  # compiled code knows their strides
        first = len(captured.inputs)
        self._refuse_shared_memory(captured)
        current = None if self._scheduled is None else self._scheduled.current
        own = [number for number, tensor in enumerate(captured.held) if tensor is current]
        step = Step(
            captured.pure,
            tuple(used),
            tuple(parameter.shape for parameter in self._flat.live),
            tuple(self._flat.pieces),
            len(self._stepper.optimizer.param_groups),
            gathered,
            len(captured.held),
            tuple(number - first for number in captured.changed),
            own[0] if own else None,
            self._skips,
        )
        return _Shape(graph, step, tables)

    def _refuse_shared_memory(self, captured: Captured) -> None:
        """Raise CompileError where a change of one tensor would be a change of another."""
        if any(number < len(captured.inputs) for number in captured.changed):
            raise CompileError("the program changes its parameters or its data in place")
        first = len(captured.inputs)
        changed = [captured.tensors[number] for number in captured.changed]
        others = [t for n, t in enumerate(captured.held, first) if n not in captured.changed]
        shared = _memory([*self._flat.live, *changed]) & _memory(others)
        if shared or len(_memory(changed)) < sum(tensor.numel() > 0 for tensor in changed):
            raise CompileError(
                "the program holds a tensor that shares its memory with a parameter or a buffer, and "
                "would not see it move (use the parameter itself, not its .data or .detach())"
            )

    def _compiled(self, shape: _Shape, rows: Tensor, builds: Builds) -> _Shape:
        captured = shape.graph.captured
        graph = with_divided_products(with_written_products(captured.graph))
        rates = torch.tensor([self._stepper.now()], dtype=torch.float64)
        carried, fixed = self._block(shape, [rows], rates)

        def loop() -> GraphModule:
            # Copies: what a loop is traced on may not share memory, which the program's tensors may.
            first = carried.of([tensor.clone() for tensor in carried.tensors()])
            still = fixed.of([tensor.clone() for tensor in fixed.tensors()])
            step = replace(shape.step, graph=functional(graph, captured.tensors, captured.changed))
            return looped(step, first, still)

        compiled = builds.build(
            f"{graph.code}{shape.step}", loop, [*carried.tensors(), *fixed.tensors()]
        )
        shape = replace(shape, compiled=compiled)
        self._check_compiler(shape, carried, fixed)
        return shape

    @staticmethod
    def _check_compiler(shape: _Shape, carried: Carried, fixed: Fixed) -> None:
        """Raise CompileError unless a compiled step does what the same step does uncompiled.

        Rounding may put a number on the other side of a kink (a ReLU's zero), and change a gradient by
        much. That is gone from other parameters nearby, where what is wrong stays wrong.
        """
        nearby = carried._replace(flat=tuple(flat * (1 + _NEARBY) for flat in carried.flat))
        if not any(_agree(shape, start, fixed) for start in (carried, nearby)):
            raise CompileError("a compiled step gives another result than the same step eager")


def _agree(shape: _Shape, carried: Carried, fixed: Fixed) -> bool:
    """Whether a compiled step does what the same step does uncompiled."""
    with repeatable_draws() as again:
        plain = shape.plainly(carried, fixed)
        again()
        try:
            compiled = shape.run(carried, fixed)
        except RuntimeError as error:
            raise CompileError(f"the compiled step does not run ({error})") from error
        finally:
            again()
    pairs = [(plain.record[0], compiled.record[0])]
    # Adam divides a gradient by its own size, rounding errors too: its moments are what to compare.
    moments = zip(plain.states, compiled.states, strict=True)
    changes = zip(plain.flat, compiled.flat, carried.flat, strict=True)
    pairs += list(moments) or [(mine - old, other - old) for mine, other, old in changes]
    return all(close(mine, other, _CLOSE) for mine, other in pairs)


def _of_torch(stepper: Stepper) -> TorchStepper:
    if not isinstance(stepper, TorchStepper):
        raise TypeError("blocks need one of torch's optimizers.")
    return stepper


def _memory(tensors: Sequence[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
