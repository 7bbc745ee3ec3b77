"""What a graph computes from nothing: from no input, no tensor of the program's and no draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ppl_vi.observing import written

aten = torch.ops.aten

_OF_SHAPE_ALONE = (
    aten.full_like.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.ones_like.default,
    aten.zeros_like.default,
)
"""Operations that read no number of their first argument."""


class Constants:
    """Values of a graph's nodes that are the same in every run.

    Args:
        graph: with the kinds of its tensors; it may lose nodes meanwhile, and gain others.
    """

    def __init__(self, graph: GraphModule) -> None:
        self._known: dict[Node, Tensor | None] = {}
        self._changed = {
            _memory(changed)
            for node in graph.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
            for changed in written(node.target, node.args, node.kwargs)
        }

    def value(self, node: Node) -> Tensor | None:
        """The value of a node; ``None`` for one that is not constant."""
        if node not in self._known:
            self._known[node] = self._value(node)
        return self._known[node]

    def is_changed(self, node: Node) -> bool:
        """Whether some operation changes the memory that a node's tensor is in."""
        return _memory(node) in self._changed

    def _value(self, node: Node) -> Tensor | None:
        if not _is_pure(node) or self.is_changed(node):
            return None
        given: dict[Node, Tensor] = {}
        for other in node.all_input_nodes:
            read = node.target not in _OF_SHAPE_ALONE or other is not node.args[0]
            value = self.value(other) if read else _like(other)
            if value is None:
                return None
            given[other] = value
        call: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), given.__getitem__)
        found = call(*args, **kwargs)
        return found if isinstance(found, Tensor) else None


def _is_pure(node: Node) -> bool:
    """Whether an operation gives the same each time that it is given the same."""
    call: Any = node.target
    if not isinstance(call, torch._ops.OpOverload) or call._schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in call.tags


def _memory(node: Node) -> Any:
    """The number of a tensor's memory, or else the node itself."""
    return getattr(node.meta.get("val"), "memory", node)


def _like(node: Node) -> Tensor | None:
    """A tensor of that kind, of whatever numbers."""
    kind = node.meta.get("val")
    if kind is None:
        return None
    return torch.empty_strided(kind.shape, kind.strides, dtype=kind.dtype, device=kind.device)
