"""Rows picked in their own order, all of them: no more than another shape.

A program with an enumerated latent z takes ``m[z]`` of every state; the gradient puts every row back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ppl_vi.compilation.constants import Constants

aten = torch.ops.aten

_ZEROS = (aten.new_zeros.default, aten.zeros.default, aten.zeros_like.default)


def without_whole_indices(graph: GraphModule) -> GraphModule:
    """The graph with a reshape in place of an index that names every row once, in order."""
    constants = Constants(graph.graph)
    for node in list(graph.graph.nodes):
        if any(map(constants.is_changed, (node, *node.all_input_nodes))):
            continue
        if node.target is aten.index.Tensor and _is_whole(node, constants):
            _reshape(node, node.args[0], node.meta["val"].shape)
        elif node.target is aten.index_put.default and len(node.args) == 4:
            base, indices, value, adds = node.args
            if adds and base.target in _ZEROS and _is_whole(node, constants):
                with graph.graph.inserting_before(node):
                    wide = graph.graph.call_function(
                        aten.expand.default, (value, _picked(base.meta["val"].shape, indices))
                    )
                wide.meta = dict(node.meta)
                _reshape(node, wide, base.meta["val"].shape)
    graph.recompile()
    return graph


def _is_whole(node: Node, constants: Constants) -> bool:
    """Whether the only index of an operation runs through a dimension in order."""
    given: Any = node.args
    tensor, indices = given[:2]
    picked = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(picked) != 1 or not isinstance(tensor, Node):
        return False
    ((dim, index),) = picked
    numbers = constants.value(index)
    if numbers is None or numbers.dtype != torch.int64:
        return False
    size = tensor.meta["val"].shape[dim]
    return torch.equal(numbers.flatten().cpu(), torch.arange(size))


def _picked(shape: Any, indices: Any) -> list[int]:
    """The shape of what an index of one dimension picks."""
    (dim,) = (dim for dim, index in enumerate(indices) if index is not None)
    return [*shape[:dim], *indices[dim].meta["val"].shape, *shape[dim + 1 :]]


def _reshape(node: Node, tensor: Any, shape: Any) -> None:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(aten.reshape.default, (tensor, list(shape)))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
