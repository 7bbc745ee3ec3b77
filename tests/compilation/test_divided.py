"""Products divided among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppl_vi.compilation import divided
from ppl_vi.compilation.building import Builds
from ppl_vi.compilation.capturing import capture
from ppl_vi.compilation.graphs import functional

needs_products = pytest.mark.skipif(
    not divided.has_products(), reason="torch has no products of one thread for this processor"
)

SIDES = (
    (128, 784, 400),  # most entries in b
    (784, 128, 400),  # in the product
    (700, 300, 20),  # in a
    (16, 3000, 70),  # terms in several parts
    (40, 600, 900),  # columns, too
    (133, 57, 65),  # nothing even
    (16, 2000, 16),
    (700, 20, 40),
    (16, 16, 2000),
)
OF_ROWS = ((1, 30_000, 50), (1, 3_000, 400), (1, 900, 777), (1, 400, 3_000))
"""One vector, of rows that lie one after the other, each times a number."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def factors() -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, turned: bool) -> Tensor:
        shape = (columns, rows) if turned else (rows, columns)
        found = torch.randn(shape, generator=draws)
        return found.t() if turned else found

    by_matrices = [
        matrix(*sides, turned)
        for m, k, n in SIDES
        for a_turned in (False, True)
        for b_turned in (False, True)
        for sides, turned in (((m, k), a_turned), ((k, n), b_turned))
    ]
    by_vectors = [
        factor
        for m, k, n in OF_ROWS
        for a, b in [(matrix(m, k, False), matrix(k, n, False))]
        for vector in (matrix(k, 1, False), matrix(k, 3, False)[:, 1:2])
        for wider in [matrix(k, n + 5, False)[:, :n]]
        for factor in (a, b, b.t(), a.t(), b.t(), vector, vector.t(), wider)
    ]
    return by_matrices + by_vectors


def pairs(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


@needs_products
def test_all_shapes_and_layouts_have_the_right_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    tensors = factors()

    captured = capture(lambda: [torch.mm(a, b) for a, b in pairs(tensors)], tensors)
    graph = divided.with_divided_products(captured.graph)
    assert "aten.mm" not in graph.code
    graph = functional(graph, captured.tensors, captured.changed)
    compiled = Builds().build(f"products {tmp_path}", lambda: graph, tensors)
    for number in (1, 2, 3, 24):  # of 24 some have no rows or terms at all
        with threads(number):
            found, again = compiled(tensors), compiled(tensors)
        for (a, b), product, repeated in zip(pairs(tensors), found, again, strict=True):
            exact = a.double() @ b.double()
            scale = (a.double().square().sum(1, keepdim=True) * b.double().square().sum(0)).sqrt()
            assert ((product - exact).abs() / scale).max() < 1e-6
            assert torch.equal(product, repeated)


def targets(function: Callable[..., Tensor], *inputs: Tensor) -> list[object]:
    graph = capture(lambda: [function(*inputs)], inputs).graph
    before = [node.target for node in graph.graph.nodes]
    changed = divided.with_divided_products(graph)
    assert [node.target for node in graph.graph.nodes] == before
    return [node.target for node in changed.graph.nodes if node.op == "call_function"]


@needs_products
def test_large_products_are_divided_and_small_ones_left() -> None:
    product = torch.ops.ppl_vi.divided_product.default
    large, narrow = torch.randn(200, 200), torch.randn(200, 5)
    assert targets(torch.mm, large, large) == [product]
    assert targets(torch.mm, large, narrow) == [torch.ops.aten.mm.default]
    assert targets(torch.mm, large.double(), large.double()) == [torch.ops.aten.mm.default]
    rows, weights = torch.randn(10_000, 50), torch.randn(1, 10_000)
    assert targets(torch.mm, weights, rows) == [product]
    assert targets(torch.mm, rows.t(), weights.t()) == [product]
    left = torch.randn(50, 10_000).t(), torch.randn(50).expand(10_000, 50)
    assert all(targets(torch.mm, weights, b) == [torch.ops.aten.mm.default] for b in left)
    shifted = torch.randn(399).unfold(0, 200, 1)  # rows that share their numbers
    assert targets(torch.mm, shifted, large) == [torch.ops.aten.mm.default]
    added = [product, torch.ops.aten.add.Tensor]
    assert targets(torch.addmm, torch.randn(200), large, large) == added


def test_nothing_is_divided_where_torch_has_no_such_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(divided, "has_products", lambda: False)
    large = torch.randn(200, 200)
    assert targets(torch.mm, large, large) == [torch.ops.aten.mm.default]
