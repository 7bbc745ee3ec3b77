"""Does compiling repay? Estimated from the graph alone, so that a fit repeats with its seed.

The figures were measured on a processor of 2024 with two cores: what an operation costs when torch
calls it by itself, what an element of its output costs, and what the compiler takes. They need not be
exact; the choice they lead to must not depend on how busy a machine is.
"""

from __future__ import annotations

from math import prod

from torch.fx import GraphModule

_SECONDS_PER_OPERATION = 2.7e-6
_SECONDS_PER_ELEMENT = 0.17e-9
"""What a fused kernel saves of the work on an element."""
_OF_THE_OPTIMIZER = 45
"""Operations that a step takes beside those of its graph."""
_COMPILER_START, _COMPILER_PER_OPERATION = 12.0, 0.015
FEW_STEPS = 100
"""Fewer steps than these do not repay the look at the program."""


def compile_seconds(graph: GraphModule) -> float:
    """How long the compiler will take, where nothing is kept from before."""
    return _COMPILER_START + _COMPILER_PER_OPERATION * _operations(graph)


def saved_per_step(graph: GraphModule) -> float:
    """Seconds that a compiled step saves over its operations one by one.

    Args:
        graph: with the shapes of its operations.
    """
    made = [node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function"]
    elements: int = sum(prod(value.shape) for value in made if hasattr(value, "shape"))
    calls = _operations(graph) + _OF_THE_OPTIMIZER
    return _SECONDS_PER_OPERATION * calls + _SECONDS_PER_ELEMENT * elements


def repays(graph: GraphModule, steps: int) -> bool:
    """Whether compiling saves more time than it takes."""
    return saved_per_step(graph) * steps > compile_seconds(graph)


def _operations(graph: GraphModule) -> int:
    return sum(node.op == "call_function" for node in graph.graph.nodes)
