"""Capture a program of tensor operations as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.graphs import lift_tensors, without_checks
from ppl_vi.compilation.indices import without_whole_indices
from ppl_vi.compilation.masks import refuse_unknown_shapes, without_constant_masks
from ppl_vi.compilation.recording import record
from ppl_vi.compilation.replaying import replayed
from ppl_vi.compilation.simplifying import simplified
from ppl_vi.compilation.spreading import with_exact_late_spreads
from ppl_vi.compilation.watching import Undo, watched
from ppl_vi.errors import CompileError
from ppl_vi.observing import memory_of
from ppl_vi.randomness import forked_rng

Program = Callable[[], tuple[Tensor, ...]]
"""Tensor operations on tensors of its own; all that it does must be in its tensors and its outputs."""

_CHECKS = 2
_CLOSE = 1e-4


@dataclass(frozen=True, eq=False)
class Captured:
    """A program as a graph.

    Attributes:
        graph: called with ``inputs`` and then ``held``, it gives what the program gives, and changes
            in place what the program changes.
        inputs: the tensors that the graph is a function of.
        held: other tensors of the program: buffers, closed-over constants, states. They are the
            program's own, so a later change of one is seen.
        changed: numbers of those among inputs and held that the program changes.
    """

    graph: GraphModule
    inputs: tuple[Tensor, ...]
    held: tuple[Tensor, ...]
    changed: tuple[int, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the operations one by one, on other inputs of the same shapes."""
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = tuple(self._replay(*inputs, *self.held))
        return outputs

    @cached_property
    def _replay(self) -> Callable[..., Any]:
        return replayed(self.graph)

    @property
    def num_outputs(self) -> int:
        """Of the program."""
        outputs: Any = self.graph.graph.output_node().args[0]
        return len(outputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that the graph is called with."""
        return *self.inputs, *self.held

    def pure(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the operations on copies of what they change; the new values are the last outputs."""
        own = list(tensors)
        for number in self.changed:
            own[number] = own[number].clone()
        with torch.no_grad():
            return (*self._replay(*own), *(own[number] for number in self.changed))


def capture(program: Program, inputs: Sequence[Tensor]) -> Captured:
    """Run a program once and write down what it does; then check that the graph repeats it.

    The random state and every tensor are left as they were.

    Args:
        program: uses the inputs by identity.
        inputs: tensors that may have other values in another run.

    Raises:
        CompileError: the program does what a graph cannot repeat.
    """
    with forked_rng(), Undo(), watched():
        # Recorded on the very tensors that the program holds, so that its parameters are inputs.
        graph, written, addresses = record(program, inputs)
    graph = with_exact_late_spreads(simplified(graph, written), written)
    graph = without_constant_masks(without_checks(graph))
    graph = without_whole_indices(graph)
    refuse_unknown_shapes(graph)  # of dead code too: a shape may have become a Python number
    graph.graph.eliminate_dead_code()
    held = lift_tensors(graph)
    every = (*inputs, *held)
    changed = tuple(number for number, tensor in enumerate(every) if memory_of(tensor) in addresses)
    captured = Captured(graph, tuple(inputs), held, changed)
    for _ in range(_CHECKS):
        check_same(captured, program, captured.inputs)
    return captured


def check_same(captured: Captured, program: Program, inputs: Sequence[Tensor]) -> None:
    """Run the program once more, and its graph on the same random numbers.

    Args:
        captured: the graph.
        program: reads the inputs.
        inputs: tensors of the shapes of those that it was captured on.

    Raises:
        CompileError: they differ, since something outside the tensors has changed.
    """
    with forked_rng():
        torch.rand(1)  # other draws than those of the capture
        with repeatable_draws() as again:
            with Undo() if captured.changed else nullcontext():  # it takes as long as all else
                expected = [output.detach().clone() for output in program()]
            again()
            found = captured.pure(*inputs, *captured.held)[: len(expected)]
    same = len(expected) == captured.num_outputs and all(map(close, expected, found))
    if not same:
        raise CompileError(
            "the program gives another result each time on the same draws: it reads something that "
            "changes outside torch's tensors (a counter, a random number of Python's, a clock)"
        )


def close(one: Tensor, other: Tensor, tolerance: float = _CLOSE) -> bool:
    """Whether two tensors differ by no more than that part of the largest entry."""
    if one.shape != other.shape:
        return False
    if torch.equal(one, other):  # as a rule they are, and this takes a tenth of the time
        return True
    scale = one.detach().abs().nan_to_num(0.0, 0.0, 0.0).max().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@contextmanager
def repeatable_draws() -> Iterator[Callable[[], None]]:
    """Gives a function that puts torch's random state back to where the block began."""
    before = torch.get_rng_state()
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def again() -> None:
        torch.set_rng_state(before)
        if on_devices:
            torch.cuda.set_rng_state_all(on_devices)

    yield again
