"""Graphs of tensor operations: made self-contained, and free of changes in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compilation.recording import Kind
from ppl_vi.observing import memory_of

aten = torch.ops.aten


def add_input(graph: Graph, name: str) -> Node:
    """An input after all others."""
    with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
        return graph.placeholder(name)


def memory(node: Node) -> Any:
    """Names the memory that a node's tensor is in; the node itself where that is not known."""
    value = node.meta.get("val")
    if isinstance(value, Kind):
        return value.memory
    return ("traced", memory_of(value)) if isinstance(value, Tensor) else node


def lift_tensors(graph: GraphModule) -> tuple[Tensor, ...]:
    """Turn the tensors that a graph holds into its last inputs, and return them.

    They are the program's own tensors, not copies: what it does to them later is seen.
    """
    found: dict[int, tuple[Tensor, Node]] = {}
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        if id(tensor) not in found:
            held = add_input(graph.graph, node.target)
            held.meta = dict(node.meta)
            found[id(tensor)] = tensor, held
        node.replace_all_uses_with(found[id(tensor)][1])
        graph.graph.erase_node(node)
        delattr(graph, node.target)  # a copy of the graph is no copy of the tensors
    graph.recompile()
    return tuple(tensor for tensor, _ in found.values())


def with_own_draws(graph: GraphModule) -> GraphModule:
    """The graph with draws that a compiler leaves as they are, and makes at once."""
    nodes: Any = graph.graph
    for node in nodes.find_nodes(op="call_function", target=aten.normal_functional.default):
        if tuple(node.args[1:]) in ((), (0.0,), (0.0, 1.0), (0, 1)) and not node.kwargs:
            value = node.meta["val"]
            kind = {"dtype": value.dtype, "device": value.device}
            with nodes.inserting_before(node):
                drawn = nodes.call_function(aten.randn.default, (list(value.shape),), kind)
            drawn.meta["val"] = value
            node.replace_all_uses_with(drawn)
            nodes.erase_node(node)
    for node in nodes.find_nodes(op="call_function", target=aten.bernoulli.p):
        if not node.kwargs:  # dropout; the inductor would draw it in another way than torch
            node.target = torch.ops.ppl_vi.bernoulli.default
    nodes.eliminate_dead_code()
    graph.recompile()
    return graph


_LIBRARY = torch.library.Library("ppl_vi", "FRAGMENT")
_LIBRARY.define(
    "bernoulli(Tensor like, float p=0.5) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("bernoulli", lambda like, p=0.5: torch.empty_like(like).bernoulli_(p), _device)
_LIBRARY.impl("bernoulli", lambda like, p=0.5: torch.empty_like(like), "Meta")


def with_plain_views(graph: GraphModule) -> GraphModule:
    """The graph with views of fresh copies written as any other views.

    torch's compiler copies before it expands where a program expands before it copies, which leaves
    nothing that could be seen in another shape; of plain views it knows to make reshapes.
    """
    views: Any = graph.graph
    for node in views.find_nodes(op="call_function", target=aten._unsafe_view.default):
        node.target = aten.view.default
    graph.recompile()
    return graph


def without_checks(graph: GraphModule) -> GraphModule:
    """The graph with an impossible decomposition told by a first output that is NaN, not an error."""
    nodes: Any = graph.graph
    checks = [node for node in nodes.nodes if node.target is aten._linalg_check_errors.default]
    (output,) = [node for node in nodes.nodes if node.op == "output"]
    for check in checks:
        info = check.args[0]
        nodes.erase_node(check)
        with nodes.inserting_before(output):
            first, *others = output.args[0]
            wrong = nodes.call_function(aten.any.default, (info,))
            nan = nodes.call_function(aten.full_like.default, (first, float("nan")))
            told = nodes.call_function(aten.where.self, (wrong, nan, first))
            output.args = ([told, *others],)
    return graph


def functional(graph: GraphModule, inputs: Sequence[Tensor], changed: Sequence[int]) -> GraphModule:
    """The graph without changes in place.

    Args:
        graph: may change its inputs.
        inputs: as it is called with.
        changed: numbers of the inputs whose new values are to be its last outputs.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    plain = tuple(tensor.detach() for tensor in inputs)
    # Functionalisation ends a graph with copies into the inputs that were changed.
    made = make_fx(torch.func.functionalize(graph), tracing_mode="fake")(*plain)
    placeholders = [node for node in made.graph.nodes if node.op == "placeholder"]
    (output,) = [node for node in made.graph.nodes if node.op == "output"]
    new: dict[Node, Any] = {}
    for node in list(made.graph.nodes):
        if node.target is aten.copy_.default and node.args[0] in placeholders:
            new[node.args[0]] = node.args[1]
            node.replace_all_uses_with(node.args[1])
            made.graph.erase_node(node)
    values = [new.get(placeholders[number], placeholders[number]) for number in changed]
    output.args = ([*output.args[0], *values],)
    return with_own_draws(with_plain_views(made))
