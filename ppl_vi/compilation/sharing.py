"""Values that many elements share, computed once.

The compiler writes all that leads to an element into the loop over the elements, and a value that they
share, such as the logarithm of a scale, it computes again for every few of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.compilation.spreading import with_late_spreads

aten = torch.ops.aten

_FEW = 500
"""Elements; for fewer, to keep a number costs as much as to compute it again."""
_CHEAP = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.neg.default,
    aten._to_copy.default,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.expand.default,
    aten.permute.default,
    aten.detach.default,
)
_LIBRARY = torch.library.Library("ppl_vi", "FRAGMENT")
_LIBRARY.define("once(Tensor number) -> Tensor")
for _device in ("CPU", "CUDA", "Meta"):
    _LIBRARY.impl("once", lambda number: number.clone(), _device)


def with_shared_values(graph: GraphModule) -> GraphModule:
    """The graph with shared values computed before they are spread, and shared numbers kept.

    Args:
        graph: with the shapes of its operations; without changes in place.
    """
    _teach_compiler()
    with_late_spreads(graph)
    costly: set[Node] = set()
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or _size(node) != 1:
            continue
        if node.target not in _CHEAP or not costly.isdisjoint(node.all_input_nodes):
            costly.add(node)
            _keep(node)
    graph.recompile()
    return graph


def _keep(number: Node) -> None:
    """Have a number stored where a loop over many elements reads it."""
    loops = [
        user for user in number.users if _size(user) >= _FEW and user.target is not aten.cat.default
    ]
    if loops:
        with number.graph.inserting_after(number):
            kept = number.graph.call_function(torch.ops.ppl_vi.once.default, (number,))
        kept.meta["val"] = number.meta["val"]
        for user in loops:
            user.replace_input_with(number, kept)


def _size(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0


def _teach_compiler() -> None:
    """Tell the inductor that ``once`` stores its number, and is no operation otherwise."""
    from torch._inductor.lowering import lowerings, register_lowering

    once = torch.ops.ppl_vi.once.default
    if once not in lowerings:

        @register_lowering(once, type_promotion_kind=None)
        def kept(number: Any) -> Any:
            number.realize()
            return number
