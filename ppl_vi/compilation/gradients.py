"""Graphs of an objective's loss and gradients, one for each shape of a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vi.compilation.building import cache_folder
from ppl_vi.compilation.capturing import Captured, Program, capture, check_same
from ppl_vi.compilation.counting import numbers_of, refuse_counters
from ppl_vi.compilation.products import with_fast_products
from ppl_vi.compilation.watching import Undo, failing_as_uncaptured
from ppl_vi.data.sources import Batch
from ppl_vi.errors import CompileError, ProgramChangedError
from ppl_vi.job import Job
from ppl_vi.objectives import Objective
from ppl_vi.parameters import trainable
from ppl_vi.preparation import shapes_of
from ppl_vi.randomness import forked_rng
from ppl_vi.running import unchecked

_MOST_SHAPES = 32


@dataclass(frozen=True, eq=False)
class GradientGraph:
    """The loss and its gradients on batches of one shape.

    Attributes:
        captured: a function of all parameters and the batch's tensors, to the loss and the gradients.
        parameters: live.
        used: numbers of those parameters that the loss depends on, whose gradients there are.
        as_captured: with the program's own products, which round as it does: a look whether the program
            is still the same must not see a number that rounding put on the other side of a kink.
    """

    captured: Captured
    parameters: tuple[Tensor, ...]
    used: tuple[int, ...]
    as_captured: Captured


class GradientGraphs:
    """Captures the loss and the gradients when a batch has a new shape, and only then.

    Attributes:
        names: of the parameters.
        captures: how many graphs were captured.
    """

    def __init__(self, objective: Objective, job: Job, parameters: Mapping[str, Tensor]) -> None:
        self.objective, self.job = objective, job
        self.names, self.parameters = tuple(parameters), tuple(parameters.values())
        self._graphs: dict[Hashable, GradientGraph] = {}
        self._good = 0
        self._asks = [(tensor, tensor.requires_grad) for tensor in self.parameters]

    @property
    def captures(self) -> int:
        return len(self._graphs)

    def of(self, batch: Batch) -> GradientGraph:
        """The graph for batches of this shape.

        Raises:
            CompileError: the programs do what a graph cannot repeat, or shapes never end.
        """
        shape = shape_of(self.job, batch)
        if shape not in self._graphs:
            if len(self._graphs) == _MOST_SHAPES:
                raise CompileError(f"batches have more than {_MOST_SHAPES} shapes")
            self._graphs[shape] = self._captured(batch)
        return self._graphs[shape]

    def refuse_thawed(self) -> None:
        """Raise CompileError if a parameter was frozen or thawed since the start."""
        if any(tensor.requires_grad is not asked for tensor, asked in self._asks):
            raise CompileError("other parameters are trainable than at the start")

    def check(self, batch: Batch, done: int) -> None:
        """Look whether the programs are still those that were captured, after ``done`` steps.

        Raises:
            ProgramChangedError: they are not; the steps since the last look may be wrong.
        """
        try:
            self._check(batch)
        except CompileError as error:
            raise ProgramChangedError(
                f"{error}. Steps {self._good + 1} to {done} may have repeated an old value. Put "
                f"what varies into a tensor and change it in place (weight.fill_(...)), or pass "
                f"compile=False"
            ) from error
        self._good = done

    def _check(self, batch: Batch) -> None:
        graph = self.of(batch)
        program, _ = self._program(batch)
        inputs = (*self.parameters, *batch.tensors)
        with failing_as_uncaptured():
            check_same(graph.as_captured, program, inputs)
        # Now that the programs have run, since it is they who register a module's parameters.
        if {id(p) for p in trainable().values()} != {id(p) for p in self.parameters}:
            raise CompileError("other parameters are trainable than at the start")

    def _captured(self, batch: Batch) -> GradientGraph:
        program, used = self._program(batch)
        with forked_rng(), Undo(), failing_as_uncaptured():
            program()  # what is found out once about batches of this shape is no part of a step
        before = numbers_of(self.job.model, self.job.guide)
        captured = capture(program, (*self.parameters, *batch.tensors))
        refuse_counters(before, numbers_of(self.job.model, self.job.guide))
        self._asks += [(tensor, tensor.requires_grad) for tensor in captured.held]
        graph = with_fast_products(captured.graph, cache_folder())
        fast = captured if graph is captured.graph else replace(captured, graph=graph)
        return GradientGraph(fast, self.parameters, tuple(used), captured)

    def _program(self, batch: Batch) -> tuple[Program, list[int]]:
        """The loss and its gradients, and the numbers of the parameters that they are taken in."""
        pair, used = self.job.pair(batch), list[int]()

        def program() -> tuple[Tensor, ...]:
            with self.job.handler(batch), unchecked(), torch.enable_grad():
                bound, total = self.objective.estimate(pair)
                if not total.requires_grad:
                    raise CompileError("the bound depends on no parameter")
                found = torch.autograd.grad(-total, self.parameters, allow_unused=True)
            used[:] = [i for i, gradient in enumerate(found) if gradient is not None]
            return (-bound, *(gradient for gradient in found if gradient is not None))

        return program, used


def shape_of(job: Job, batch: Batch) -> Hashable:
    """What a graph depends on besides the tensors' values."""
    leaves = tree_leaves((batch.args, batch.kwargs))
    numbers = tuple(leaf for leaf in leaves if isinstance(leaf, float))
    shared = batch.part and batch.part.size
    return shapes_of(job.pair(batch)), numbers, batch.size, batch.rows is None, shared
