"""Large tensors that a loop hands from turn to turn, changed where they are.

torch's ``while_loop`` knows no changes in place: each turn writes its parameters to other memory than
it read them from, and a large model passes through the processor's caches twice in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ppl_vi.compilation.graphs import memory

aten = torch.ops.aten

_LARGE = 50_000
"""Entries; fewer stay in a core's cache."""


def in_place(graph: Graph) -> None:
    """Change large tensors of each loop of a graph in place; a pass of torch's compiler over it.

    The loop begins with copies, since it was handed what belongs to the caller.
    """
    module: Any = graph.owning_module
    loops = graph.find_nodes(op="call_function", target=torch.ops.higher_order.while_loop)
    for loop in loops:
        goes_on, body, carried, others = loop.args
        inside = module.get_submodule(str(body.target))
        changed = _change(inside.graph)
        inside.recompile()
        with graph.inserting_before(loop):
            own = [_copy(node) if i in changed else node for i, node in enumerate(carried)]
        loop.args = goes_on, body, tuple(own), others
    if loops:
        module.recompile()


def _change(body: Graph) -> set[int]:
    """Write what a turn hands on into what it was handed, and tell for which tensors."""
    handed = body.find_nodes(op="placeholder")
    output = body.output_node()
    every: Any = output.args[0]
    after = list(every)
    known = set(map(memory, handed))  # what a turn hands on may be what it was handed, unchanged
    changed = {i for i, new in enumerate(after) if _is_large(new) and memory(new) not in known}
    with body.inserting_before(output):
        for i in changed:
            after[i] = body.call_function(aten.copy_.default, (handed[i], after[i]))
            after[i].meta["val"] = handed[i].meta["val"]
    output.args = (tuple(after),)
    return changed


def _is_large(node: Node) -> bool:
    value = node.meta["val"]
    large: bool = value.numel() >= _LARGE and value.device.type == "cpu"
    return large


def _copy(tensor: Node) -> Node:
    copy = tensor.graph.call_function(aten.clone.default, (tensor,))
    copy.meta["val"] = tensor.meta["val"].clone()
    return copy
