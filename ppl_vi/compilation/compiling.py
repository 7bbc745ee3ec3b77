"""A captured graph as a library that is called like the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.building import Builds, Compiled
from ppl_vi.compilation.capturing import Captured, close
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
