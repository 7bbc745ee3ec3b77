"""What follows from a program's constants alone, computed once."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from ppl_vi.compilation.capturing import Captured
from ppl_vi.compilation.constants import Constants
from ppl_vi.compilation.graphs import add_input

_LARGE = 10_000
"""Entries; what is smaller costs less than a compiler gains by knowing it."""


def folded(captured: Captured) -> Captured:
    """The graph with results of its large constants, the data's squares say, held as tensors.

    A later change of such a constant is not seen.
    """
    nodes: Any = captured.graph.graph
    placeholders = nodes.find_nodes(op="placeholder")
    first = len(captured.inputs)
    given = {
        placeholder: captured.held[number]
        for number, placeholder in enumerate(placeholders[first:])
        if first + number not in captured.changed
    }
    constants = Constants(nodes, given)
    made = dict[Node, Tensor]()
    for node in [node for node in nodes.nodes if _is_large(node, constants)]:
        held = add_input(nodes, f"folded_{len(made)}")
        held.meta = dict(node.meta)
        made[held] = constants.value(node).contiguous()
        node.replace_all_uses_with(held)
    nodes.eliminate_dead_code()
    for unused in [placeholder for placeholder in made if not placeholder.users]:
        nodes.erase_node(unused)
        del made[unused]
    captured.graph.recompile()
    return replace(captured, held=(*captured.held, *made.values()))


def _is_large(node: Node, constants: Constants) -> bool:
    """Whether it makes a constant tensor, and it or what it is made of is large."""
    if not isinstance(constants.value(node), Tensor) or _is_view(node):
        return False
    around = map(constants.value, (node, *node.all_input_nodes))
    return any(isinstance(value, Tensor) and value.numel() >= _LARGE for value in around)


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(returned.alias_info for returned in schema.returns)
