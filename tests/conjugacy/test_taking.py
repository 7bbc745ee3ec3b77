"""Entries of tables by category."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions.util import broadcast_shape

from ppl_vi.conjugacy.taking import taken


@pytest.mark.parametrize(
    ("tables", "places"),
    [
        ((5,), ()),
        ((5,), (7,)),
        ((3, 1, 5), (7,)),  # words of topics
        ((7, 5), (7,)),
        ((3, 7, 5), (7,)),
        ((3, 1, 1, 5), (4, 7)),
        ((3, 1, 5), (2, 1, 1, 7)),
        ((2, 1, 3, 1, 5), (1, 4, 1, 6)),
    ],
)
def test_entries_and_gradients_are_those_of_gather(tables: object, places: object) -> None:
    table = torch.randn(*tables, dtype=torch.float64, requires_grad=True)  # type: ignore[misc]
    place = torch.randint(5, places)  # type: ignore[call-overload]
    found = taken(table, place)
    shape = broadcast_shape(table.shape[:-1], place.shape)
    index = place.expand(shape).unsqueeze(-1)
    expected = table.expand(*shape, 5).gather(-1, index).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
    weight = torch.randn(shape, dtype=torch.float64)
    mine, own = (
        torch.autograd.grad((value * weight).sum(), table)[0] for value in (found, expected)
    )
    torch.testing.assert_close(mine, own)


def test_an_enumerated_latent_moves_a_dimension() -> None:
    table = torch.randn(7, 5)
    found = taken(table, torch.arange(5).reshape(5, 1))
    assert found.data_ptr() == table.data_ptr()
    assert torch.equal(found, table.T)
    other = taken(table, torch.tensor([[4], [3], [2], [1], [0]]))
    assert torch.equal(other, table.T.flip(0))
