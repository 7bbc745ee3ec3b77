"""What follows from a program's constants alone, computed once."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from ppl_vi.compilation.capturing import Captured

_LARGE = 10_000
"""Entries; what is smaller costs less than a compiler gains by knowing it."""


def folded(captured: Captured) -> Captured:
    """The graph with results of its large constants, the data's squares say, held as tensors.

    A later change of such a constant is not seen.
    """
    nodes: Any = captured.graph.graph
    placeholders = nodes.find_nodes(op="placeholder")
    first = len(captured.inputs)
    known: dict[Node, Any] = {
        placeholder: captured.held[number]
        for number, placeholder in enumerate(placeholders[first:])
        if first + number not in captured.changed
    }
    last, made = placeholders[-1], dict[Node, Tensor]()
    for node in list(nodes.nodes):
        if not _is_fixed(node, known):
            continue
        with torch.no_grad():
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
        if _is_large(node, known):
            with nodes.inserting_after(last):
                last = nodes.placeholder(f"folded_{len(made)}")
            last.meta = dict(node.meta)
            made[last] = known[last] = known[node].contiguous()
            node.replace_all_uses_with(last)
    nodes.eliminate_dead_code()
    for unused in [placeholder for placeholder in made if not placeholder.users]:
        nodes.erase_node(unused)
        del made[unused]
    captured.graph.recompile()
    return replace(captured, held=(*captured.held, *made.values()))


def _is_fixed(node: Node, known: dict[Node, Any]) -> bool:
    """Whether an operation gives the same in every run."""
    if node.op != "call_function" or not known.keys() >= set(node.all_input_nodes):
        return False
    schema = getattr(node.target, "_schema", None)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and not (schema and schema.is_mutable)


def _is_large(node: Node, known: dict[Node, Any]) -> bool:
    """Whether it makes a tensor, and it or what it is made of is large."""
    if not isinstance(known[node], Tensor) or _is_view(node):
        return False
    around = [known[node], *(known[other] for other in node.all_input_nodes)]
    return any(isinstance(value, Tensor) and value.numel() >= _LARGE for value in around)


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(returned.alias_info for returned in schema.returns)
