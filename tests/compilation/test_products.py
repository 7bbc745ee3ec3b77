"""Large matrix products are taken by the faster library, and stay the same products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppl_vi.compilation import products
from ppl_vi.compilation.capturing import capture
from ppl_vi.compilation.products import with_fast_products, with_written_products

WEIGHT = torch.nn.Parameter(torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) / 10)
ROWS = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
BIAS = torch.linspace(-1.0, 1.0, 200)


def both_ways() -> tuple[Tensor, ...]:
    hidden = torch.nn.functional.linear(ROWS, WEIGHT.t(), BIAS)
    (gradient,) = torch.autograd.grad(hidden.square().sum(), [WEIGHT])
    return hidden, gradient


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_products_by_the_other_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(products, "_CHOSEN", {})
    monkeypatch.setattr(products, "_choice", lambda *_: True)
    captured = capture(both_ways, (WEIGHT,))
    graph = with_fast_products(captured.graph, tmp_path)
    assert targets(graph).count("ppl_vi.product.default") == 2
    with torch.no_grad():
        for mine, other in zip(graph(*captured.tensors), both_ways_plainly(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def both_ways_plainly() -> tuple[Tensor, ...]:
    with torch.enable_grad():
        return both_ways()


def test_a_choice_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that a fit repeats with its seed, even where the next measurement would differ."""
    captured = capture(both_ways, (WEIGHT,))
    monkeypatch.setattr(products, "_CHOSEN", {})
    monkeypatch.setattr(products, "_ratio", lambda *_: 0.5)
    first = targets(with_fast_products(captured.graph, tmp_path))
    products._CHOSEN.clear()
    monkeypatch.setattr(products, "_ratio", lambda *_: 2.0)
    assert targets(with_fast_products(captured.graph, tmp_path)) == first
    products._CHOSEN.clear()
    assert "ppl_vi.product.default" not in targets(
        with_fast_products(captured.graph, tmp_path / "new")
    )
    products._CHOSEN.clear()


def test_a_product_with_a_vector_is_written_out() -> None:
    captured = capture(lambda: (ROWS @ WEIGHT[:, :1],), (WEIGHT,))
    graph = with_written_products(captured.graph)
    assert "aten.mm.default" not in targets(graph)
    with torch.no_grad():
        (found,) = graph(*captured.tensors)
        torch.testing.assert_close(found, ROWS @ WEIGHT[:, :1], rtol=1e-5, atol=1e-5)
