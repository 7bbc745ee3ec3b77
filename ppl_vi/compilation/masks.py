"""Boolean masks in a graph that are always the same, as row numbers.

How many elements a mask picks is not known before it is there, which a compiler of fixed shapes cannot
follow. Masks that are computed from nothing (the lower triangle of a matrix, say) are known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ppl_vi.compilation.constants import Constants
from ppl_vi.errors import CompileError

aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


def without_constant_masks(graph: GraphModule) -> GraphModule:
    """The graph with the numbers of the elements that constant masks pick in place of the masks."""
    constants, count = Constants(graph.graph), 0
    for node in list(graph.graph.nodes):
        if node.target not in _INDEXED:
            continue
        indices: list[Any] = []
        for index in node.args[1]:
            mask = constants.value(index) if isinstance(index, Node) else None
            if mask is None or mask.dtype != torch.bool:
                indices.append(index)
                continue
            for numbers in mask.nonzero(as_tuple=True):
                name = f"_mask_numbers_{count}"
                graph.register_buffer(name, numbers.clone())
                with graph.graph.inserting_before(node):
                    indices.append(graph.graph.get_attr(name))
                count += 1
        node.args = (node.args[0], indices, *node.args[2:])
    return graph


def refuse_unknown_shapes(graph: GraphModule) -> None:
    """Raise a CompileError where how many elements there are depends on their values."""
    for node in graph.graph.nodes:
        call: Any = node.target
        if node.op != "call_function" or not isinstance(call, torch._ops.OpOverload):
            continue
        if node.meta.get("constant"):
            continue
        if call is aten.index.Tensor:
            unknown = any(isinstance(i, Node) and _dtype(i) == torch.bool for i in node.args[1])
        else:
            unknown = torch.Tag.dynamic_output_shape in call.tags
        if unknown:
            raise CompileError(
                f"the program picks elements by a condition on their values, as x[x > 0] does "
                f"({call}), so that shapes change from step to step; torch.where keeps them"
            )


def _dtype(node: Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)
