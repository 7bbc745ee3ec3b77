"""Fewer operations that give the same numbers, bit for bit.

Pyro and autograd reshape, detach and multiply by one far more often than a model needs. Each such
operation costs microseconds where steps are not compiled, and compiling time where they are.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_BY_ONE = (
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.pow.Tensor_Scalar,
)


def simplified(graph: GraphModule, written: Set[int]) -> GraphModule:
    """The graph without repetitions, and without operations that give back what they are given.

    Args:
        graph: recorded, with the kind of each tensor.
        written: the memory that some operation changes, by number; nothing there is touched.
    """
    seen: dict[Any, Node] = {}
    views = {node for node in graph.graph.nodes if _is_same_view(node)}  # before arguments change
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable:
            continue
        same = _given_back(node, node in views, written)
        if same is None and _is_repeatable(node, written):
            same = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    return graph


def _is_same_view(node: Node) -> bool:
    """Whether an operation gives the very memory that it is given, seen in the same way."""
    first = node.args[0] if node.args else None
    return isinstance(first, Node) and first.meta.get("val") == node.meta.get("val", ())


def _given_back(node: Node, is_same_view: bool, written: Set[int]) -> Node | None:
    """The argument that an operation gives back as it is."""
    first, *others = node.args or (None,)
    own = node.meta.get("val")
    if own is None or not isinstance(first, Node):
        return None
    given = first.meta["val"]
    untouched = not {own.memory, given.memory} & written
    if is_same_view:
        return first if untouched or node.target is not aten.lift_fresh_copy.default else None
    by_one = node.target in _BY_ONE and len(others) == 1 and _is_one(others[0])
    return first if by_one and untouched and own.like(given) and not node.kwargs else None


def _is_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 1


def _is_repeatable(node: Node, written: Set[int]) -> bool:
    """Whether an operation gives the same each time in a step."""
    if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
        return False
    kinds = [other.meta.get("val") for other in (node, *node.all_input_nodes)]
    return all(kind is not None and kind.memory not in written for kind in kinds)
