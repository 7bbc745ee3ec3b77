"""Products divided among threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.compilation import divided
from ppl_vi.compilation.building import Builds

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

    return [
        matrix(*sides, turned)
        for m, k, n in SIDES
        for a_turned in (False, True)
        for b_turned in (False, True)
        for sides, turned in (((m, k), a_turned), ((k, n), b_turned))
    ]


def pairs(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


@needs_products
def test_all_shapes_and_layouts_have_the_right_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    tensors = factors()

    def products(*given: Tensor) -> list[Tensor]:
        return [torch.mm(a, b) for a, b in pairs(list(given))]

    graph = divided.with_divided_products(make_fx(products, tracing_mode="fake")(*tensors))
    assert "aten.mm" not in graph.code
    compiled = Builds().build(f"products {tmp_path}", lambda: graph, tensors)
    for number in (1, 2, 3, 24):  # of 24 some have no rows or terms at all
        with threads(number):
            found, again = compiled(tensors), compiled(tensors)
        for (a, b), product, repeated in zip(pairs(tensors), found, again, strict=True):
            exact = a.double() @ b.double()
            scale = (a.double().square().sum(1, keepdim=True) * b.double().square().sum(0)).sqrt()
            assert ((product - exact).abs() / scale).max() < 1e-6
            assert torch.equal(product, repeated)


def targets(function: object, *inputs: Tensor) -> list[object]:
    graph = make_fx(function, tracing_mode="fake")(*inputs)
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
    added = [product, torch.ops.aten.add.Tensor]
    assert targets(torch.addmm, torch.randn(200), large, large) == added


def test_nothing_is_divided_where_torch_has_no_such_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(divided, "has_products", lambda: False)
    large = torch.randn(200, 200)
    assert targets(torch.mm, large, large) == [torch.ops.aten.mm.default]
