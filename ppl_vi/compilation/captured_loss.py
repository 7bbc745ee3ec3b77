"""Loss and gradients from captured graphs, for any optimizer and any source of data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vi.compilation.building import Builds, Compiled
from ppl_vi.compilation.gradients import GradientGraph, GradientGraphs
from ppl_vi.compilation.graphs import functional
from ppl_vi.data import Batch
from ppl_vi.errors import CompileError


class CapturedLoss:
    """Replays the graph of a batch's loss, as a compiled library or operation by operation.

    Args:
        graphs: captures.
        builds: compiles; ``None`` to take one operation after the other.
    """

    def __init__(self, graphs: GradientGraphs, builds: Builds | None = None) -> None:
        self._graphs, self._builds = graphs, builds
        self._compiled: dict[int, _CompiledGraph] = {}
        self._calls, self._next_check = 0, 1

    def __call__(self, batch: Batch) -> float:
        """The loss on a batch; sets the gradients of the parameters.

        Raises:
            CompileError: a batch of a new shape cannot be captured, or the programs have changed.
        """
        self._graphs.refuse_thawed()
        if self._calls == self._next_check:
            self._next_check *= 2
            self._graphs.check(batch, self._calls)
        self._calls += 1
        graph = self._graphs.of(batch)
        inputs = (*graph.parameters, *batch.tensors)
        compiled = self._compiled.get(id(graph))  # batches of other sizes do not repay it
        try:
            loss, *gradients = compiled(inputs) if compiled else graph.captured(*inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CompileError(f"its operations cannot be repeated ({reason})") from error
        for number, gradient in zip(graph.used, gradients, strict=True):
            # Laid out as the parameter is, in memory of its own: optimizers change it in place.
            parameter = graph.parameters[number]
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        return loss.item()

    def prepare(self, batch: Batch) -> None:
        """Compile for batches of this shape, if at all.

        Raises:
            CompileError: the programs or the machine do not allow it.
        """
        graph = self._graphs.of(batch)
        if self._builds is not None:
            self._compiled[id(graph)] = _CompiledGraph(graph, self._builds)


class _CompiledGraph:
    """A graph as a library; what the program changes in place is copied back."""

    def __init__(self, graph: GradientGraph, builds: Builds) -> None:
        captured = graph.captured
        tensors = _plain(captured.tensors)
        self._held, self._changed = captured.held, captured.changed
        self._run: Compiled = builds.build(
            captured.graph.code,
            lambda: functional(captured.graph, tensors, captured.changed),
            tensors,
        )

    def __call__(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        every = (*inputs, *self._held)
        found = self._run(_plain(every))
        first = len(found) - len(self._changed)
        with torch.no_grad():
            for number, value in zip(self._changed, found[first:], strict=True):
                every[number].copy_(value)
        return found[:first]


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Without gradients, and with the strides that compiled code knows them by."""
    return [tensor.detach().contiguous() for tensor in tensors]
