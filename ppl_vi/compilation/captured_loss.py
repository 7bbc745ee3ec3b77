"""Loss and gradients from captured graphs, for any optimizer and any source of data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vi.compilation.building import Builds
from ppl_vi.compilation.compiling import CompiledGraph
from ppl_vi.compilation.gradients import GradientGraphs
from ppl_vi.data.sources import Batch
from ppl_vi.errors import CompileError
from ppl_vi.observing import memory_of


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
        parameters = [graph.parameters[number] for number in graph.used]
        _hand_over(gradients, parameters, (*inputs, *graph.captured.held))
        return loss.item()

    def prepare(self, batch: Batch) -> None:
        """Compile for batches of this shape, if at all.

        Raises:
            CompileError: the programs or the machine do not allow it.
        """
        graph = self._graphs.of(batch)
        if self._builds is not None:
            self._compiled[id(graph)] = CompiledGraph(graph.captured, self._builds)


def _hand_over(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], others: Sequence[Tensor]
) -> None:
    """Set gradients, laid out as parameters are, in memory of their own: optimizers change them.

    Args:
        gradients: made by a graph; copied only where that is needed.
        parameters: which they are of.
        others: what the graph was given, and may have handed on.
    """
    taken = set(map(memory_of, others))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        gradient = gradient.resolve_conj().resolve_neg()
        whole = gradient.untyped_storage().nbytes() == gradient.nbytes
        if memory_of(gradient) in taken or not whole or gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient
        taken.add(memory_of(gradient))
