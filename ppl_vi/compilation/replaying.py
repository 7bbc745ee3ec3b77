"""A graph as it is run one operation after the other, with nothing done twice or by detours.

Half of a small step is spent on the way to operations. What a graph computes from nothing is computed
once, and common operations are called as a program calls them, which takes half as long as by way of
their entries in torch's table of operations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compilation.constants import Constants
from ppl_vi.compilation.graphs import add_input, memory

_MOST_HELD = 1_000_000
"""Entries of a constant; what is larger would rather fill memory than take time."""
_FUNCTIONS = (
    "abs add addmm bmm cat clamp clamp_min clone cos cumsum div empty empty_like eq exp exp_ expm1 "
    "fill_ gather ge gt index_select le lgamma log log1p log_ logical_and logsumexp lt masked_fill "
    "max mean min mm mul ne neg permute pow reciprocal relu relu_ rsqrt rsub select sgn sigmoid sin "
    "sqrt square squeeze stack sub sum t tanh transpose unsqueeze where xlogy"
)
"""Operations that are functions of torch, too, with the same arguments."""
_METHODS = ("add_", "div_", "expand", "mul_", "neg_", "normal_", "repeat", "sub_", "view", "zero_")
"""Likewise, of tensors."""
_DIRECT = {name: getattr(torch, name) for name in _FUNCTIONS.split()}


def replayed(graph: GraphModule) -> Callable[..., Any]:
    """A function that does what a graph does.

    Args:
        graph: with the kinds of its tensors, and no tensors of its own; it stays as it is.
    """
    own = copy.deepcopy(graph.graph)
    constants = _take_out_constants(own)
    for node in own.nodes:
        _call_directly(node)
    forward = GraphModule({}, own).forward
    return lambda *inputs: forward(*inputs, *constants)


def _take_out_constants(graph: Graph) -> list[Tensor]:
    """Make inputs of what follows from nothing; what is handed out is left: a caller may change it."""
    constants, found = Constants(graph), list[Tensor]()
    handed_out = set(map(memory, graph.output_node().all_input_nodes))
    for node in list(graph.nodes):
        value = constants.value(node)
        if not isinstance(value, Tensor) or not _is_held(value) or memory(node) in handed_out:
            continue
        users = [user for user in node.users if constants.value(user) is None]
        if users:
            held = add_input(graph, f"constant_{len(found)}")
            found.append(value)
        for user in users:
            user.replace_input_with(node, held)
    graph.eliminate_dead_code()
    return found


def _is_held(value: Tensor) -> bool:
    return value.untyped_storage().nbytes() <= _MOST_HELD * value.element_size()


def _call_directly(node: Node) -> None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    schema = node.target._schema
    namespace, name = schema.name.split("::")
    if namespace != "aten" or any(argument.is_out for argument in schema.arguments):
        return
    if name in _METHODS:
        node.op, node.target = "call_method", name
    else:
        node.target = _DIRECT.get(name, node.target)
