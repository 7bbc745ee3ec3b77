"""Capture a program of tensor operations as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.graphs import declared_batch_norm, lift_tensors, without_checks
from ppl_vi.compilation.masks import refuse_unknown_shapes, without_constant_masks
from ppl_vi.compilation.watching import Undo, watched
from ppl_vi.errors import CompileError
from ppl_vi.randomness import forked_rng

Program = Callable[[], tuple[Tensor, ...]]
"""Tensor operations on tensors of its own; all that it does must be in its tensors and its outputs."""

_CHECKS = 2
_CLOSE = 1e-4
_DECLARED = {torch.ops.aten.native_batch_norm.default: declared_batch_norm}


@dataclass(frozen=True, eq=False)
class Captured:
    """A program as a graph.

    Attributes:
        graph: called with ``inputs`` and then ``held``, it gives what the program gives, and changes
            in place what the program changes.
        inputs: the tensors that the graph is a function of.
        held: other tensors of the program: buffers, closed-over constants, states. They are the
            program's own, so a later change of one is seen.
    """

    graph: GraphModule
    inputs: tuple[Tensor, ...]
    held: tuple[Tensor, ...]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the operations one by one, on other inputs of the same shapes."""
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = tuple(self.graph(*inputs, *self.held))
        return outputs


def capture(program: Program, inputs: Sequence[Tensor]) -> Captured:
    """Run a program once and write down what it does; then check that the graph repeats it.

    The random state and every tensor are left as they were.

    Args:
        program: uses the inputs by identity.
        inputs: tensors that may have other values in another run.

    Raises:
        CompileError: the program does what a graph cannot repeat.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with forked_rng(), Undo(), watched():
        # Traced on the very tensors that the program holds, so that its parameters are inputs.
        graph = make_fx(lambda *_: program(), _DECLARED, tracing_mode="real")(*inputs)
    graph = without_constant_masks(without_checks(graph))
    graph.graph.eliminate_dead_code()
    refuse_unknown_shapes(graph)
    held = lift_tensors(graph)
    captured = Captured(graph, tuple(inputs), held)
    for _ in range(_CHECKS):
        check_same(captured, program)
    return captured


def check_same(captured: Captured, program: Program) -> None:
    """Run the program once more, and its graph on the same random numbers.

    Raises:
        CompileError: they differ, since something outside the tensors has changed.
    """
    with forked_rng():
        torch.rand(1)  # other draws than those of the capture
        with repeatable_draws() as again:
            with Undo():
                expected = [output.detach().clone() for output in program()]
            again()
            with Undo():
                found = [output.clone() for output in captured(*captured.inputs)]
    same = len(expected) == len(found) and all(map(_close, expected, found))
    if not same:
        raise CompileError(
            "the program gives another result each time on the same draws: it reads something that "
            "changes outside torch's tensors (a counter, a random number of Python's, a clock)"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = one.detach().abs().nan_to_num(0.0, 0.0, 0.0).max().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * scale, equal_nan=True)


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
