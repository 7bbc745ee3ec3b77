"""A captured graph as a library that is called like the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.building import Builds, Compiled
from ppl_vi.compilation.capturing import Captured, Program, capture, close
from ppl_vi.compilation.costs import repays
from ppl_vi.compilation.folding import folded
from ppl_vi.compilation.graphs import functional
from ppl_vi.compilation.sharing import with_shared_values
from ppl_vi.errors import CompileError


class CompiledGraph:
    """A captured graph, compiled; what the program changes in place is copied back.

    Args:
        captured: the graph, with its tensors.
        builds: compiles.

    Raises:
        CompileError: the compiler does not take it.
    """

    def __init__(self, captured: Captured, builds: Builds) -> None:
        tensors = _plain(captured.tensors)
        self._held, self._changed = captured.held, captured.changed

        def graph() -> GraphModule:
            return with_shared_values(functional(captured.graph, tensors, captured.changed))

        self._run: Compiled = builds.build(captured.graph.code, graph, tensors)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs at other inputs of the same shapes."""
        every = (*inputs, *self._held)
        found = self._run(_plain(every))
        first = len(found) - len(self._changed)
        with torch.no_grad():
            for number, value in zip(self._changed, found[first:], strict=True):
                every[number].copy_(value)
        return tuple(found[:first])


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Without gradients, and with the strides that compiled code knows them by."""
    return [tensor.detach().contiguous() for tensor in tensors]


def compiled(captured: Captured, builds: Builds) -> CompiledGraph:
    """The graph compiled, checked to give what it gives uncompiled.

    It may neither draw nor change tensors in place.

    Raises:
        CompileError: the compiler does not take it, or makes something else of it.
    """
    made = CompiledGraph(captured, builds)
    expected, found = captured(*captured.inputs), made(*captured.inputs)
    if not all(map(close, expected, found)):
        raise CompileError("a compiled sweep gives another result than the same sweep uncompiled")
    return made


def hastened(
    program: Program, inputs: Sequence[Tensor], times: int
) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of its inputs, as fast as so many calls repay.

    Args:
        program: uses the inputs by identity, and changes nothing.
        inputs: tensors that have other values in each call.
        times: how often it will be called.

    Raises:
        CompileError: the program does what a graph cannot repeat.
    """
    captured = folded(capture(program, inputs))
    if not repays(captured.graph, times):
        return captured
    try:
        return compiled(captured, Builds())
    except CompileError:
        return captured
