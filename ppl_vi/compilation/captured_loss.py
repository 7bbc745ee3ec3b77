"""Loss and gradients from captured graphs, for any optimizer and any source of data."""

from __future__ import annotations

import torch

from ppl_vi.compilation.building import Builds
from ppl_vi.compilation.compiling import CompiledGraph
from ppl_vi.compilation.gradients import GradientGraphs
from ppl_vi.data.sources import Batch
from ppl_vi.errors import CompileError


class CapturedLoss:
    """Replays the graph of a batch's loss, as a compiled library or operation by operation.

    Args:
        graphs: captures.
        builds: compiles; ``None`` to take one operation after the other.
    """

    def __init__(self, graphs: GradientGraphs, builds: Builds | None = None) -> None:
        self._graphs, self._builds = graphs, builds
        self._compiled: dict[int, CompiledGraph] = {}
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
            loss, *gradients = compiled(*inputs) if compiled else graph.captured(*inputs)
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
            self._compiled[id(graph)] = CompiledGraph(graph.captured, self._builds)
