"""Compute on tensors before they are spread over many elements.

Distributions broadcast their parameters first, so that the logarithm of a scale which all rows share
is computed once for every row, and so are the weights of a mixture's components.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ppl_vi.compilation.recording import Kind

aten = torch.ops.aten

_BY_ROW = (aten._log_softmax.default, aten._softmax.default)
"""Operations along one dimension, which treat all rows alike."""
_LAID_OUT: dict[str, Any] = {"memory_format": torch.contiguous_format}


def with_late_spreads(
    graph: GraphModule, least: int = 0, written: Collection[int] = ()
) -> GraphModule:
    """The graph with ``expand`` after what is computed from its result, element by element.

    Each element is computed from the same numbers as before.

    Args:
        graph: with the shapes of its operations.
        least: elements of a result that is worth it.
        written: the memory that some operation changes, by number.
    """
    for node in list(graph.graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, (Tensor, Kind)) or value.shape.numel() < max(least, 1):
            continue
        if _is_by_element(node) and getattr(value, "memory", None) not in written:
            _spread_late(node)
    return graph


def _is_by_element(node: Node) -> bool:
    """Whether an element of the result depends on the same element, or row, of tensors alone."""
    tags = getattr(node.target, "tags", ())
    random = torch.Tag.nondeterministic_seeded in tags  # each element has a draw of its own
    return (torch.Tag.pointwise in tags and not random) or node.target in _BY_ROW


def _spread_late(node: Node) -> None:
    """Compute a result from tensors as they were before ``expand``, and expand it."""
    value, small = node.meta["val"], {t: _before_spread(t) for t in node.all_input_nodes}
    values = [tensor.meta["val"] for tensor in small.values()]
    shape = torch.broadcast_shapes(*(v.shape for v in values))
    same = len({v.dtype for v in values}) == 1  # else a number of no dimension loses its say
    if not values or not same or shape.numel() == value.shape.numel():
        return
    args, kwargs = map_arg((node.args, node.kwargs), small.__getitem__)
    if node.target in _BY_ROW:
        given: Any = args[1]
        dim = given % len(value.shape) - len(value.shape)
        if len(shape) < -dim or shape[dim] != value.shape[dim]:
            return
        args = (args[0], dim, *args[2:])
    nodes: Any = node.graph
    with nodes.inserting_before(node):
        early = nodes.call_function(node.target, args, kwargs)
        spread = nodes.call_function(aten.expand.default, (early, list(value.shape)))
    early.meta["val"], spread.meta["val"] = _of_shape(value, shape), _of_shape(value, value.shape)
    node.replace_all_uses_with(spread, _is_laid_out_anyway)
    if node.users and _strides(value) == _contiguous(value.shape):
        # A sum, say, is the same to the bit where it is of what is laid out the same.
        with nodes.inserting_before(node):
            laid = nodes.call_function(aten.clone.default, (spread,), _LAID_OUT)
        laid.meta["val"] = value
        node.replace_all_uses_with(laid)


def _before_spread(node: Node) -> Node:
    """The tensor that a node repeats: itself, but for ``expand`` and views that change nothing."""
    while node.target in (aten.expand.default, aten.view.default):
        before: Any = node.args[0]
        kept = before.meta["val"].shape == node.meta["val"].shape
        if node.target is not aten.expand.default and not kept:
            break
        node = before
    return node


def _of_shape(value: Any, shape: torch.Size) -> Any:
    """What would be known of a tensor like another, of that shape."""
    if isinstance(value, Kind):
        return value._replace(shape=shape, strides=_contiguous(shape), offset=0)
    return value.new_empty(shape)


def _is_laid_out_anyway(user: Node) -> bool:
    """Whether the layout of an operation's result does not hang on one argument that is spread.

    torch orders the dimensions of a result as those of its first argument which has an order.
    """
    return _is_by_element(user) and all(map(_is_in_order, user.all_input_nodes))


def _is_in_order(node: Node) -> bool:
    """Whether elements lie row by row, however often they are repeated."""
    value = node.meta["val"]
    steps = [step for size, step in zip(value.shape, _strides(value), strict=True) if size > 1]
    steps = [step for step in steps if step > 0]
    return steps == sorted(steps, reverse=True)


def _strides(value: Any) -> tuple[int, ...]:
    return value.strides if isinstance(value, Kind) else value.stride()


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
