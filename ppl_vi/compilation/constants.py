"""What a graph computes from nothing that moves: from no input and no draw."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ppl_vi.compilation.graphs import memory
from ppl_vi.compilation.recording import Kind
from ppl_vi.observing import written

aten = torch.ops.aten

_LIKE = (aten.full_like.default, aten.ones_like.default, aten.zeros_like.default)
_NEW = (aten.new_full.default, aten.new_ones.default, aten.new_zeros.default)
"""Operations that read no number of their first argument; these not even its shape."""


class Constants:
    """Values of a graph's nodes that are the same in every run.

    Args:
        graph: with the kinds of its tensors; it may lose nodes meanwhile, and gain others.
        given: values of inputs that are taken for constant.
    """

    def __init__(self, graph: Graph, given: Mapping[Node, Tensor] | None = None) -> None:
        self._known: dict[Node, Any] = dict(given or {})
        self._changed = {
            memory(changed)
            for node in graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
            for changed in written(node.target, node.args, node.kwargs)
        }

    def value(self, node: Node) -> Any:
        """The tensor or tensors that a node gives; ``None`` for one that is not constant."""
        if node not in self._known:
            self._known[node] = self._value(node)
        return self._known[node]

    def is_changed(self, node: Node) -> bool:
        """Whether some operation changes the memory that a node's tensor is in."""
        return memory(node) in self._changed

    def _value(self, node: Node) -> Any:
        if not _is_pure(node) or self.is_changed(node):
            return None
        given: dict[Node, Any] = {}
        for other in node.all_input_nodes:
            unread = node.target in (*_LIKE, *_NEW) and other is node.args[0]
            given[other] = _like(other, node.target in _LIKE) if unread else self.value(other)
            if given[other] is None:
                return None
        call: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), given.__getitem__)
        with torch.no_grad():
            return call(*args, **kwargs)


def _is_pure(node: Node) -> bool:
    """Whether an operation gives the same each time that it is given the same."""
    call: Any = node.target
    if not isinstance(call, torch._ops.OpOverload):
        return call is operator.getitem
    return not call._schema.is_mutable and torch.Tag.nondeterministic_seeded not in call.tags


def _like(node: Node, shaped: bool) -> Tensor | None:
    """A tensor of that kind, of whatever numbers, and of that shape if so wished."""
    value = node.meta.get("val")
    if not isinstance(value, (Kind, Tensor)):
        return None
    strides = value.strides if isinstance(value, Kind) else value.stride()
    layout = (value.shape, strides) if shaped else ((), ())
    return torch.empty_strided(*layout, dtype=value.dtype, device=value.device)
