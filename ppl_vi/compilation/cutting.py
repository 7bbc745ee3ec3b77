"""A program on rows, cut where rows are summed, so that it can be run on them a part at a time.

The same program is captured on two numbers of rows. What has another shape there follows the rows; what
has the same shape but is made of something that follows them is a sum over rows, and all that comes
after it needs no row any more. Sums that need other sums first are of a later pass. Those that need
no input but rows (the mean that data are centred by) are the same in every run, and made once.

Each row counts N / B times in a part of B rows, so that a sum over all N is the mean of what the parts
give, weighted by their shares.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ppl_vi.compilation.capturing import Captured
from ppl_vi.compilation.graphs import functional
from ppl_vi.errors import CompileError

aten = torch.ops.aten
Tensors = tuple[Tensor, ...]

_SUMS = (
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.mean.default,
    aten.mean.dim,
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.mv.default,
    aten.dot.default,
    aten.index_add.default,
    aten.index_put.default,
    aten.scatter_add.default,
    aten.embedding_dense_backward.default,
)
"""Operations whose result, where the rows are gone from it, is affine in what each row adds."""

_FILLED = {
    aten.new_zeros.default: 0.0,
    aten.zeros_like.default: 0.0,
    aten.new_ones.default: 1.0,
    aten.ones_like.default: 1.0,
    aten.new_full.default: None,
    aten.full_like.default: None,
}
"""What operations fill a tensor with that look at another only for its shape and type."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A program as passes over the rows, and what is made of their sums.

    Attributes:
        setups: from rows, and the sums of setups before, to sums that are the same in every run.
        passes: from the state, rows, and all sums before, to sums.
        first: from the state and the sums up to those of the first pass, to the second output.
        rest: from the state and all sums, to the other outputs.
        shapes: tensors like the sums, by setup and then by pass.
    """

    setups: tuple[Captured, ...]
    passes: tuple[Captured, ...]
    first: Captured
    rest: Captured
    shapes: tuple[Tensors, ...]


def cut(usual: Captured, other: Captured, states: int) -> tuple[Cut, Cut]:
    """A program, captured on two numbers of rows, cut where rows are summed.

    Args:
        usual: its inputs are tensors of the state, and then of the rows. Its first output is a number
            that decompositions which fail turn into NaN, the second needs one pass.
        other: the same with another number of rows.
        states: how many tensors the state has.

    Returns:
        The program for the one number of rows, and for the other.

    Raises:
        CompileError: it does not look the same on both, or does more with rows than sum them.
    """
    pair = tuple(_Marked(each, states) for each in (usual, other))
    follows = _follows(*pair)
    for marked in pair:
        marked.make_constants(follows)
    levels = _levels(pair[0], follows)
    return pair[0].cut(levels), pair[1].cut(levels)


class _Marked:
    """A captured program whose operations have numbers."""

    def __init__(self, captured: Captured, states: int) -> None:
        if captured.changed:
            raise CompileError("it changes tensors in place")
        graph = captured.graph
        if any(_is_mutable(node) for node in graph.graph.nodes):
            graph = functional(graph, captured.tensors, ())
        self.captured, self.states = captured, states
        self.nodes: list[Node] = list(graph.graph.nodes)
        self.number = {node: number for number, node in enumerate(self.nodes)}
        self.held = len(captured.inputs)

    @property
    def outputs(self) -> list[Node]:
        """Of the program."""
        found: Any = self.nodes[-1].args[0]
        return list(found)

    def make_constants(self, follows: list[bool]) -> None:
        """Let go of rows that only lend their type to a tensor of another shape."""
        for number, node in enumerate(self.nodes):
            if node.target in _FILLED and not follows[number] and "val" in node.meta:
                value, fill = node.meta["val"], _FILLED[node.target]
                node.args = (list(value.shape), node.args[-1] if fill is None else fill)
                node.kwargs = {"dtype": value.dtype, "device": value.device}
                node.target = aten.full.default

    def cut(self, levels: _Levels) -> Cut:
        """The program with its sums taken by level."""
        sums = [[self.nodes[number] for number in level] for level in levels.sums]
        pieces, known = [], list[Node]()
        for number, level in enumerate(sums):
            pieces.append(self._piece(level, known, rows=True, state=number >= levels.setups))
            known += level
        setups, passes = pieces[: levels.setups], pieces[levels.setups :]
        early = [node for level in sums[: levels.setups + 1] for node in level]
        wrong, bound, *others = self.outputs
        first = self._piece([bound], early, rows=False)
        rest = self._piece([wrong, *others], known, rows=False)
        shapes = tuple(tuple(_like(node) for node in level) for level in sums)
        return Cut(tuple(setups), tuple(passes), first, rest, shapes)

    def _piece(
        self, outputs: list[Node], known: list[Node], rows: bool, state: bool = True
    ) -> Captured:
        """The operations from inputs and known sums to some nodes."""
        graph, copies = Graph(), dict[Node, Node]()
        given = [
            *(self.nodes[: self.states] if state else ()),
            *(self.nodes[self.states : self.held] if rows else ()),
        ]
        last = self.held + len(self.captured.held)
        for node in (*given, *known, *self.nodes[self.held : last]):
            copies[node] = graph.placeholder(node.name)
            copies[node].meta = dict(node.meta)
        wanted = _ancestors(outputs, set(copies))
        for node in self.nodes:
            if node in wanted:
                if node.op == "placeholder":
                    raise CompileError("it needs rows beside their sums")
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in outputs))
        inputs = [self.captured.inputs[self.number[node]] for node in given]
        like = [_like(node) for node in known]
        return Captured(GraphModule({}, graph), (*inputs, *like), self.captured.held)


@dataclass(frozen=True)
class _Levels:
    """Numbers of the nodes that are sums over rows, by setup and then by pass."""

    sums: list[list[int]]
    setups: int


def _follows(one: _Marked, other: _Marked) -> list[bool]:
    """By node, whether it follows the rows: its shape does, or it holds another value."""
    alike = [node.target for node in one.nodes if node.op == "call_function"] == [
        node.target for node in other.nodes if node.op == "call_function"
    ]
    if not alike or len(one.nodes) != len(other.nodes):
        raise CompileError("it does other operations on another number of rows")
    found = [_shape(a) != _shape(b) for a, b in zip(one.nodes, other.nodes, strict=True)]
    held = zip(one.captured.held, other.captured.held, strict=True)
    for number, (mine, theirs) in enumerate(held, one.held):
        found[number] = found[number] or not torch.equal(mine, theirs)
    for number, (a, b) in enumerate(zip(one.nodes, other.nodes, strict=True)):
        if a.op != "call_function" or found[number] or _is_tuple(a):
            continue
        if _fixed(one, a) != _fixed(other, b):
            raise CompileError(f"it computes with the number of rows ({a.target})")
    return found


def _levels(marked: _Marked, follows: list[bool]) -> _Levels:
    """In which setup or pass each sum over rows is made."""
    moves = [number < marked.states for number in range(len(marked.nodes))]
    level = [0] * len(marked.nodes)  # of the first setup, or the first pass, where it can be made
    found: tuple[list[list[int]], list[list[int]]] = ([], [])
    for number, node in enumerate(marked.nodes):
        if node.op != "call_function":
            continue
        inputs = [marked.number[each] for each in node.all_input_nodes]
        moves[number] = any(moves[each] for each in inputs)
        same = [each for each in inputs if moves[each] == moves[number]]
        level[number] = max((level[each] for each in same), default=0)
        of_rows = any(follows[each] for each in inputs)
        follows[number] = follows[number] or (_is_tuple(node) and of_rows)
        if follows[number] or not of_rows:
            continue
        if moves[number] and not _sums(node):
            raise CompileError(f"it does more with rows than sum them ({node.target})")
        own = found[moves[number]]
        own.extend([] for _ in range(level[number] + 1 - len(own)))
        own[level[number]].append(number)
        level[number] += 1
    return _Levels([*found[0], *found[1]], len(found[0]))


def _sums(node: Node) -> bool:
    """Whether an operation adds up what each row adds."""
    if node.target is aten.index_put.default:
        return len(node.args) > 3 and node.args[3] is True
    return node.target in _SUMS


def _fixed(marked: _Marked, node: Node) -> str:
    """The arguments of an operation, other nodes by their numbers."""
    given: Any = node.args, node.kwargs
    return repr(map_arg(given, lambda each: marked.number[each]))  # NaN equals NaN


def _ancestors(nodes: Sequence[Node], known: set[Node]) -> set[Node]:
    """The nodes that others are made of, down to those that are known."""
    found: set[Node] = set()
    waiting = [node for node in nodes if node not in known]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [each for each in node.all_input_nodes if each not in known]
    return found


def _shape(node: Node) -> Any:
    return getattr(node.meta.get("val"), "shape", None)


def _is_tuple(node: Node) -> bool:
    """Whether an operation gives several tensors."""
    return any(user.target is operator.getitem for user in node.users)


def _is_mutable(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable)


def _like(node: Node) -> Tensor:
    value = node.meta["val"]
    return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
