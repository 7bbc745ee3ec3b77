"""Matrix products by the faster of the two libraries that torch comes with, or by neither.

On some processors MKL is fast, on others oneDNN by a factor of two; torch always asks MKL. Which is
faster for a product is measured once on a machine, and kept beside the compiled steps, so that a fit
repeats with its seed. A matrix that lies by rows times one vector is left to the compiler: its loop
runs on all threads.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import compress
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_LEAST_WORK = 2_000_000
"""Multiplications; a smaller product is not worth the call of another library."""
_LANES = 16
"""Numbers in a processor's vector; a shorter row leaves it empty."""
_REPEATS = 40
_PASSING = 4_000_000
"""Numbers that a step handles between two of its products: more than a core's own cache holds."""
_CHOSEN: dict[str, bool] = {}
_LIBRARY = torch.library.Library("ppl_vi", "FRAGMENT")
_LIBRARY.define("product(Tensor a, Tensor b) -> Tensor")


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; the inductor knows the operation inside with constant weights only, so it is hidden."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return found


_LIBRARY.impl("product", _by_onednn, "CPU")
_LIBRARY.impl("product", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")


def with_fast_products(graph: GraphModule, folder: Path) -> GraphModule:
    """A graph that takes large products of float32 matrices by the faster library.

    Args:
        graph: with the shapes of its operations; it stays as it is.
        folder: where the choice for each shape is kept.
    """
    if not torch.backends.mkldnn.is_available() or not any(map(_is_product, graph.graph.nodes)):
        return graph
    operation = torch.ops.ppl_vi.product.default
    return with_products_by(operation, graph, lambda factors: _is_faster(factors, folder))


def with_products_by(
    operation: Any, graph: GraphModule, is_chosen: Callable[[Sequence[Any]], bool]
) -> GraphModule:
    """A graph that takes some of its products of two matrices by another operation.

    Args:
        operation: from two matrices to their product.
        graph: with the shapes of its operations; it stays as it is.
        is_chosen: asked with the nodes of the two factors of each product.
    """
    chosen = [_is_replaceable(node) and is_chosen(node.args[-2:]) for node in graph.graph.nodes]
    if not any(chosen):
        return graph
    graph = copy.deepcopy(graph)
    for node in compress(list(graph.graph.nodes), chosen):
        if node.target is aten.addmm.default:
            _add_apart(node, operation)
        else:
            node.target = operation
    graph.recompile()
    return graph


def _is_replaceable(node: Node) -> bool:
    if node.target is aten.addmm.default:
        return not node.kwargs
    return node.target in (aten.mm.default, torch.ops.ppl_vi.product.default)


def _add_apart(node: Node, product: Any) -> None:
    """Have another operation take the product of an ``addmm``, and add apart from it."""
    bias, *factors = node.args
    nodes = node.graph
    with nodes.inserting_before(node):
        found = nodes.call_function(product, tuple(factors))
        total = nodes.call_function(aten.add.Tensor, (found, bias))
    found.meta["val"] = total.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(total)
    nodes.erase_node(node)


def is_large(factors: Sequence[Any], least_work: int, least_side: int = 1) -> bool:
    """Whether a product of float32 matrices on the processor has so many multiplications or more.

    Args:
        factors: two nodes.
        least_work: multiplications.
        least_side: of rows, columns and terms.
    """
    a, b = (factor.meta["val"] for factor in factors)
    sides = int(a.shape[0]), int(a.shape[1]), int(b.shape[1])
    kind: bool = a.dtype == torch.float32 and a.device.type == "cpu"
    return kind and prod(sides) >= least_work and min(sides) >= least_side


def with_written_products(graph: GraphModule) -> GraphModule:
    """A graph whose products of a matrix with one vector are sums, for a compiler to work on."""
    graph = copy.deepcopy(graph)
    for node in list(graph.graph.nodes):
        if node.target is aten.mm.default and _is_by_vector(node):
            _write_out(node)
    graph.recompile()
    return graph


def _is_product(node: Node) -> bool:
    return node.target in (aten.addmm.default, aten.mm.default)


def _is_by_vector(product: Node) -> bool:
    """Whether a matrix that lies row by row is multiplied by one vector."""
    factors: Any = product.args
    a, b = (factor.meta["val"] for factor in factors)
    rows: bool = a.strides == (a.shape[1], 1) and a.shape[1] >= _LANES
    kind: bool = a.dtype == torch.float32 and a.device.type == "cpu"
    return rows and kind and int(b.shape[1]) == 1


def _write_out(product: Node) -> None:
    """A product with a vector as a sum, which the compiler shares among threads; MKL does not."""
    factors: Any = product.args
    a, b = factors
    nodes = product.graph
    with nodes.inserting_before(product):
        row = nodes.call_function(aten.t.default, (b,))
        terms = nodes.call_function(aten.mul.Tensor, (a, row))
        total = nodes.call_function(aten.sum.dim_IntList, (terms, [1], True))
    total.meta["val"] = product.meta["val"]
    product.replace_all_uses_with(total)
    nodes.erase_node(product)


def _is_faster(factors: Sequence[Any], folder: Path) -> bool:
    a, b = (factor.meta["val"] for factor in factors)
    if not is_large(factors, _LEAST_WORK):
        return False
    threads = torch.get_num_threads()
    how = f"{threads} {torch.get_float32_matmul_precision()} {torch.__version__}"
    key = f"{tuple(a.shape)}{a.strides} {tuple(b.shape)}{b.strides} {how}"
    if key not in _CHOSEN:
        _CHOSEN[key] = _choice(key, a, b, folder / "faster_products.json")
    return _CHOSEN[key]


def chosen() -> dict[str, bool]:
    """The choices of this process, for another one to go on with."""
    return dict(_CHOSEN)


def choose(choices: Mapping[str, bool]) -> None:
    """Choose as another process did."""
    _CHOSEN.update(choices)


def _choice(key: str, a: Any, b: Any, file: Path) -> bool:
    """What was found before on this machine, or is found now."""
    known = _read(file)
    if key not in known:
        a = torch.empty_strided(tuple(a.shape), a.strides).fill_(0.5)
        b = torch.empty_strided(tuple(b.shape), b.strides).fill_(0.5)
        ours = lambda: torch.ops.ppl_vi.product(a, b)  # noqa: E731
        faster = _ratio(ours, lambda: torch.mm(a, b)) < 1.0
        known = {**_read(file), key: faster}
        with suppress(OSError):  # then it is measured again in the next process
            file.parent.mkdir(parents=True, exist_ok=True)
            written = file.with_suffix(f".{os.getpid()}")
            written.write_text(json.dumps(known, indent=0))
            written.replace(file)
    return bool(known[key])


def _read(file: Path) -> dict[str, bool]:
    try:
        known: dict[str, bool] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known


def _ratio(one: Callable[[], Any], other: Callable[[], Any]) -> float:
    """The ratio of the times of two functions: medians of many calls, in turns.

    Between two products of a step the rest of it passes through the processor's caches. A product
    repeated at once would find its factors there, and another library may then be the faster one.
    """
    passing = torch.zeros(_PASSING)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(_REPEATS):
            for function, found in zip((one, other), seconds, strict=True):
                passing.add_(1.0)
                started = time.perf_counter()
                function()
                found.append(time.perf_counter() - started)
    return median(seconds[0]) / median(seconds[1])
