"""Compute on tensors before they are spread over many elements.

Distributions broadcast their parameters first, so that the logarithm of a scale which all rows share
is computed once for every row, and so are the weights of a mixture's components.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ppl_vi.compilation.recording import Kind

aten = torch.ops.aten

_BY_ROW = (aten._log_softmax.default, aten._softmax.default)
"""Operations along one dimension, which treat all rows alike."""
_ROUNDED_ALIKE = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default),
    *(aten.mul.Scalar, aten.div.Scalar, aten.abs.default, aten.reciprocal.default),
    *(aten.exp.default, aten.expm1.default, aten.log.default, aten.log1p.default),
    *(aten.sqrt.default, aten.lgamma.default, aten.digamma.default),
}
"""Operations that torch computes in one way wherever an element lies. A sigmoid, say, is rounded in one
way where elements fill the processor's vectors, and in another where they do not."""
_POWERS = (-2, -1, 0.5, 2, 3)
"""Which are products and roots, and rounded alike too."""
_MANY = 10_000
"""Elements; for fewer, another call of torch costs as much as their logarithms."""
_LAID_OUT: dict[str, Any] = {"memory_format": torch.contiguous_format}


def with_late_spreads(graph: GraphModule) -> GraphModule:
    """The graph with ``expand`` after what is computed from its result, element by element.

    Args:
        graph: with the shapes of its operations; without changes in place.
    """
    for node in list(graph.graph.nodes):
        if _is_by_element(node) and (spread := _spread_late(node)):
            node.replace_all_uses_with(spread)
    for node in graph.graph.nodes:
        if node.target is aten.view.default:  # what is spread late is not laid out as it was
            node.target = aten.reshape.default
    return graph


def with_exact_late_spreads(graph: GraphModule, written: Collection[int]) -> GraphModule:
    """The same where it changes no bit of any result.

    Args:
        graph: recorded, with the kind of each tensor.
        written: the memory that some operation changes, by number; nothing there is touched.
    """
    for node in list(graph.graph.nodes):
        kind = node.meta.get("val")
        if kind is None or kind.shape.numel() < _MANY or kind.memory in written:
            continue
        if _is_rounded_alike(node) and (spread := _spread_late(node)):
            _replace_alike(node, spread)
    return graph


def _is_by_element(node: Node) -> bool:
    """Whether an element of the result depends on the same element, or row, of tensors alone."""
    tags = getattr(node.target, "tags", ())
    random = torch.Tag.nondeterministic_seeded in tags  # each element has a draw of its own
    return (torch.Tag.pointwise in tags and not random) or node.target in _BY_ROW


def _is_rounded_alike(node: Node) -> bool:
    """Whether that is so to the bit, however tensors are laid out."""
    if node.kwargs:  # a factor of the second term is multiplied and added at once, or not
        return False
    power = node.target is aten.pow.Tensor_Scalar and node.args[1] in _POWERS
    return power or node.target in _ROUNDED_ALIKE or node.target in _BY_ROW


def _spread_late(node: Node) -> Node | None:
    """A result computed from tensors as they were before ``expand``, and expanded; if that is less."""
    value, small = node.meta.get("val"), {t: _before_spread(t) for t in node.all_input_nodes}
    values = [tensor.meta["val"] for tensor in small.values()]
    if not values or not isinstance(value, (Tensor, Kind)):
        return None
    shape = torch.Size(broadcast_shape(*(v.shape for v in values)))
    same = len({v.dtype for v in values}) == 1  # else a number of no dimension loses its say
    if not same or shape.numel() == value.shape.numel():
        return None
    args, kwargs = map_arg((node.args, node.kwargs), small.__getitem__)
    if node.target in _BY_ROW:
        given: Any = args[1]
        dim = given % len(value.shape) - len(value.shape)
        if shape[dim:] != value.shape[dim:]:
            return None
        args = (args[0], dim, *args[2:])
    nodes: Any = node.graph
    with nodes.inserting_before(node):
        early = nodes.call_function(node.target, args, kwargs)
        spread: Node = nodes.call_function(aten.expand.default, (early, list(value.shape)))
    early.meta["val"], spread.meta["val"] = _of_shape(value, shape), _of_shape(value, value.shape)
    return spread


def _replace_alike(node: Node, spread: Node) -> None:
    """Replace a node by what is spread where the results are the same to the bit."""
    value = node.meta["val"]
    node.replace_all_uses_with(spread, _is_laid_out_anyway)
    if node.users and value.strides == _contiguous(value.shape):
        # A sum, say, is the same to the bit where it is of what is laid out the same.
        with node.graph.inserting_before(node):
            laid = node.graph.call_function(aten.clone.default, (spread,), _LAID_OUT)
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
    return _is_rounded_alike(user) and all(map(_is_in_order, user.all_input_nodes))


def _is_in_order(node: Node) -> bool:
    """Whether elements lie row by row, however often they are repeated."""
    kind = node.meta["val"]
    steps = [step for size, step in zip(kind.shape, kind.strides, strict=True) if size > 1]
    return all(one > other for one, other in pairwise(filter(None, steps)))


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
