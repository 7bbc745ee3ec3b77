"""Moments of what a program computes, against draws and against what torch itself gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vi.conjugacy.gaussian import Multilinear
from ppl_vi.conjugacy.positive import Positive, Power
from ppl_vi.conjugacy.sums import grows, summed_product
from ppl_vi.conjugacy.values import Uncertain, Unknown

DRAWS = 40_000
GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(5, 3, generator=GENERATOR)
A_MEAN, A_ROOT = torch.randn(3, generator=GENERATOR), torch.randn(3, 3, generator=GENERATOR)
B_MEAN, B_SCALE = (
    torch.randn(5, 3, generator=GENERATOR),
    torch.rand(5, 3, generator=GENERATOR) + 0.1,
)
INDEX = torch.tensor([2, 0, 2, 1])


def latents() -> tuple[Uncertain, Uncertain]:
    """A vector with a full covariance, and a table of independent entries with a noise each."""
    a = Multilinear({(): A_MEAN, ("a",): A_ROOT.T})
    b = Multilinear({(): B_MEAN, ("b",): torch.eye(3)[:, None] * B_SCALE})
    return Uncertain.of(A_MEAN, a), Uncertain.of(B_MEAN, b)


GAUSSIAN: dict[str, Callable[[Any, Any], Any]] = {
    "affine": lambda a, b: 2 * a - 1 + a / 3,
    "matrix times vector": lambda a, b: DATA @ a + 1,
    "sum of products": lambda a, b: (DATA * a).sum(-1),
    "broadcast": lambda a, b: a + b,
    "product": lambda a, b: (a * b)[:, INDEX[:3]],
    "product of matrices": lambda a, b: b @ torch.stack([a, 2 * a], -1),
    "index": lambda a, b: a[INDEX] - 2 * a[INDEX.flip(0)],
    "einsum": lambda a, b: torch.einsum("nk,k->n", DATA, a) * b[:, 0],
    "joined": lambda a, b: torch.cat([a, b[0], torch.ones(2)]).reshape(2, 4).T,
    "cumulated": lambda a, b: a.cumsum(0).unsqueeze(0).expand(2, 3),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_means_and_variances(name: str) -> None:
    """Within 5 standard errors of 40,000 draws, some 100 numbers: one false alarm in 10,000."""
    found = GAUSSIAN[name](*latents())
    assert isinstance(found.law, Multilinear), found.law.reason
    noise = torch.randn(DRAWS, 3, generator=torch.Generator().manual_seed(1))
    other = torch.randn(DRAWS, 5, 3, generator=torch.Generator().manual_seed(2))
    draws = torch.stack(
        [
            GAUSSIAN[name](a, b)
            for a, b in zip(A_MEAN + noise @ A_ROOT.T, B_MEAN + B_SCALE * other, strict=True)
        ]
    )
    error = draws.std(0) / DRAWS**0.5
    assert ((draws.mean(0) - found.law.mean).abs() < 5 * error + 1e-5).all()
    squares = (draws - draws.mean(0)).square()
    error = squares.std(0) / DRAWS**0.5
    assert ((squares.mean(0) - found.law.variances[()]).abs() < 5 * error + 1e-5).all()
    assert found.shape == draws.shape[1:]


def gamma() -> Uncertain:
    mean, log = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 1.0])
    return Uncertain.of(mean, Positive(log, torch.ones(2), {"g": Power(mean, 1.0)}))


@pytest.mark.parametrize(
    "scale",
    [
        lambda g: g.rsqrt(),
        lambda g: 1 / g.sqrt(),
        lambda g: g**-0.5,
        lambda g: g.reciprocal().sqrt(),
        lambda g: torch.pow(g, -0.5),
        lambda g: torch.ones(2) / torch.sqrt(g),
    ],
)
def test_every_way_to_write_a_scale(scale: Callable[[Any], Any]) -> None:
    law = scale(gamma()).law.to_the(-2.0)
    torch.testing.assert_close(law.mean(), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(law.log, torch.tensor([0.5, 1.0]))


def test_entries_of_one_site_are_not_taken_for_each_other() -> None:
    g = gamma()
    assert (g[0] / g[1]).law.mean() is None
    assert (g * g).law.mean() is None
    assert isinstance(g.log().law, Unknown)


def test_sums_of_products_without_the_table_of_all() -> None:
    rows, components = torch.randn(7, 1, 3).expand(7, 4, 3), torch.randn(4, 3).expand(7, 4, 3)
    assert grows(rows, components) and not grows(rows, torch.randn(7, 4, 3))
    expected = (rows * components).sum(-1)
    torch.testing.assert_close(summed_product(rows, components, 1), expected)
    constant = torch.full((), 2.0).expand(4, 3)
    found = summed_product(constant, torch.ones(()).expand(4, 3), 1)
    torch.testing.assert_close(found.expand(4), torch.full((4,), 6.0))


def test_what_only_looks_at_shape_or_type_is_plain() -> None:
    a, _ = latents()
    for found in (torch.zeros_like(a), a.new_ones(2), torch.ones(3).type_as(a), DATA.to(a)):
        assert type(found) is Tensor
    assert a.shape == (3,) and len(a) == 3 and a.dtype == torch.float32
