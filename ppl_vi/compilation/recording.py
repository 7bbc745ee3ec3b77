"""Write down the tensor operations of a program while it runs.

torch's own tracers load its compiler first, which takes longer than many a fit. What a program does to
tensors is seen below its Python code, gradients included, so that a list of operations is enough.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence, Set
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils.weak import WeakTensorKeyDictionary

from ppl_vi.errors import CompileError
from ppl_vi.observing import Observer, memory_of, written
from ppl_vi.user_lines import user_line

aten = torch.ops.aten


class Kind(NamedTuple):
    """What is known of a tensor without its values, in ``node.meta["val"]``."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    conjugate: bool
    negative: bool
    memory: int
    offset: int

    def like(self, other: Kind) -> bool:
        """Whether both are laid out in the same way."""
        return self[:6] == other[:6]


class Recorded(NamedTuple):
    """A program's operations.

    Attributes:
        graph: called with the inputs, it does what the program did; other tensors are attributes.
        written: the memory, by its number in ``Kind``, that the program changes.
        changed: the addresses of such memory that was there before the program ran.
    """

    graph: GraphModule
    written: frozenset[int]
    changed: frozenset[int]


def record(program: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """Run a program and write down its operations.

    Args:
        program: uses the inputs by identity.
        inputs: become the inputs of the graph.

    Raises:
        CompileError: the program turns a tensor into a Python value, or has a random generator of
            its own.
    """
    recorder = _Recorder(inputs)
    with recorder:
        outputs = program()
    return recorder.finished(outputs)


class _Memories:
    """Numbers for pieces of memory, the same in each run of a program.

    An address is no name: when its first owner is gone, it may be another's.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._next = count()
        self._alive: list[Tensor] = []
        self.outside: set[int] = set()

    def of(self, tensor: Tensor) -> int:
        """The number of a tensor's memory; views share it."""
        return self._numbers[memory_of(tensor)]

    def meet(self, tensor: Tensor) -> bool:
        """Take up memory from outside the program, which outlives it; whether it is new."""
        address = memory_of(tensor)
        if address in self.outside:
            return False
        self.outside.add(address)
        self._alive.append(tensor)
        self._numbers[address] = next(self._next)
        return True

    def add(self, made: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Take up what an operation has made, but for views of what it was given."""
        known = self.outside.union(map(memory_of, given))
        for address in dict.fromkeys(map(memory_of, made)):
            if address not in known:
                self._numbers[address] = next(self._next)

    def addresses(self, numbers: Set[int]) -> frozenset[int]:
        """Where the memory of these numbers is, if it is from outside."""
        return frozenset(a for a in self.outside if self._numbers[a] in numbers)


class _Recorder(Observer):
    records = True

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph, self._held = Graph(), torch.nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._names = (f"held_{number}" for number in count())
        self._memories = _Memories()
        self._written: set[int] = set()
        self._constant: set[int] = set()
        for number, tensor in enumerate(inputs):
            self._memories.meet(tensor)
            self._told(tensor, self._graph.placeholder(f"input_{number}"))

    def finished(self, outputs: Sequence[Tensor]) -> Recorded:
        """The graph that ends with these outputs."""
        self._graph.output(tuple(self._node(tensor) for tensor in outputs))
        changed = self._memories.addresses(self._written)
        return Recorded(GraphModule(self._held, self._graph), frozenset(self._written), changed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.native_batch_norm.default:
            func, args = declared_batch_norm(*args)
        given = _tensors((args, kwargs))
        for tensor in given:
            self._meet(tensor, literal=func is aten.lift_fresh.default)
        if reason := _refused(func):
            raise CompileError(f"{user_line(sys._getframe(1))} {reason}")
        constant = self._is_constant(func, given)
        if torch.Tag.data_dependent_output in func.tags:
            if constant:
                return func(*args, **kwargs)  # known before the first step
            line = user_line(sys._getframe(1))
            raise CompileError(
                f"{line} turns a tensor into a Python number (.item(), bool(), if, float()); "
                f"torch.where chooses between tensors"
            )
        node = self._written_down(func, args, kwargs)
        node.meta["constant"] = constant
        found = func(*args, **kwargs)
        self._note_changes(written(func, args, kwargs), constant)
        made = _outputs(self._graph, node, found)
        self._memories.add([tensor for tensor, _ in made], given)
        for tensor, own in made:
            self._told(tensor, own)
            if memory_of(tensor) not in self._memories.outside:
                self._mark(self._memories.of(tensor), constant)
        return found

    def _written_down(self, func: Any, args: Any, kwargs: Any) -> Node:
        # A tensor made from Python numbers must be a new one each time: it may be changed in place.
        target = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
        args, kwargs = map_aggregate((args, kwargs), self._node)
        return self._graph.call_function(target, args, kwargs)

    def _node(self, value: Any) -> Any:
        """The node that gives a tensor; one from outside the program becomes an attribute."""
        if isinstance(value, torch.Generator):
            raise CompileError("the program draws from a random generator of its own")
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            name = next(self._names)
            setattr(self._held, name, value)
            self._meet(value)
            self._told(value, self._graph.get_attr(name))
        return self._nodes[value]

    def _meet(self, tensor: Tensor, literal: bool = False) -> None:
        """Take up a tensor from outside; one made of Python numbers is constant until it is changed."""
        if tensor not in self._nodes and self._memories.meet(tensor) and literal:
            self._constant.add(self._memories.of(tensor))

    def _told(self, tensor: Tensor, node: Node) -> None:
        own = tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        bits = tensor.is_conj(), tensor.is_neg()
        memory = self._memories.of(tensor)
        node.meta["val"] = Kind(*own, *bits, memory, int(tensor.storage_offset()))
        self._nodes[tensor] = node

    def _is_constant(self, func: Any, given: Sequence[Tensor]) -> bool:
        """Whether a result is the same in each run, since it is made of nothing that moves."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        return all(self._memories.of(tensor) in self._constant for tensor in given)

    def _note_changes(self, changed: Sequence[Tensor], constant: bool) -> None:
        for tensor in changed:
            memory = self._memories.of(tensor)
            self._written.add(memory)
            self._mark(memory, constant and memory_of(tensor) not in self._memories.outside)

    def _mark(self, memory: int, constant: bool) -> None:
        (self._constant.add if constant else self._constant.discard)(memory)


def declared_batch_norm(*args: Any) -> tuple[Any, tuple[Any, ...]]:
    """``aten.native_batch_norm``, by the operation that declares its changes in place."""
    tensor, weight, bias, mean, _, *options = args
    if mean is None:
        return aten._native_batch_norm_legit.no_stats, (tensor, weight, bias, *options)
    return aten._native_batch_norm_legit.default, args


def _refused(func: Any) -> str:
    """Why an operation cannot be written down; empty if it can."""
    if func is aten.cudnn_batch_norm.default:
        return "calls cuDNN's batch norm, which changes buffers without declaring it"
    if torch.is_inference_mode_enabled():
        return "runs in torch.inference_mode(), where torch does not tell its operations apart"
    return ""


def _tensors(arguments: Any) -> list[Tensor]:
    given: list[Tensor] = []
    map_aggregate(arguments, lambda each: given.append(each) if isinstance(each, Tensor) else None)
    return given


def _outputs(graph: Graph, node: Node, found: Any) -> list[tuple[Tensor, Node]]:
    """The tensors that an operation gives, each with its node."""
    if isinstance(found, Tensor):
        return [(found, node)]
    if not isinstance(found, (tuple, list)):
        return []
    told = []
    for number, value in enumerate(found):
        own = graph.call_function(operator.getitem, (node, number))
        told += _outputs(graph, own, value)
    return told
