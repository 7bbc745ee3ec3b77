"""Graphs that are run one operation after the other: as little as possible, and the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vi.compilation import Captured, capture, replaying
from ppl_vi.compilation.cutting import cut
from ppl_vi.errors import CompileError

WEIGHT = torch.randn(4)


class Counted(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.done[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_what_follows_from_nothing_is_computed_once() -> None:
    captured = capture(lambda: (WEIGHT * torch.ones_like(WEIGHT).cumsum(0).exp(),), (WEIGHT,))
    with Counted() as counted:
        (found,) = captured(WEIGHT)
    assert counted.done == {"aten.mul.Tensor": 1}
    assert torch.equal(found, WEIGHT * torch.ones(4).cumsum(0).exp())


def test_what_is_changed_in_place_is_made_anew() -> None:
    def program() -> tuple[Tensor]:
        table = torch.zeros(4)
        seen = table.cumsum(0)
        table[1:3].add_(WEIGHT[1:3])  # a change of a view
        return (table + seen,)

    captured = capture(program, (WEIGHT,))
    for other in (WEIGHT, 2 * WEIGHT):
        (found,) = captured(other)
        assert torch.equal(found, other * torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_a_mask_that_is_changed_by_a_view_of_it_is_not_taken_for_constant() -> None:
    def program() -> tuple[Tensor]:
        mask = torch.zeros(4, dtype=torch.bool)
        mask[1:3].fill_(True)
        return (WEIGHT[mask],)

    with pytest.raises(CompileError, match="picks elements by a condition"):
        capture(program, (WEIGHT,))


def test_draws_are_drawn_anew() -> None:
    captured = capture(lambda: (WEIGHT + torch.zeros(4).normal_(), torch.randn(4)), (WEIGHT,))
    first, second = captured(WEIGHT), captured(WEIGHT)
    assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("of", [lambda ones: ones, lambda ones: ones.split(2)[0]])
def test_a_constant_that_is_handed_out_may_be_changed(of: Callable[[Tensor], Tensor]) -> None:
    captured = capture(lambda: (WEIGHT.exp(), of(torch.ones(4))), (WEIGHT,))
    captured(WEIGHT)[1].fill_(7.0)
    assert torch.equal(captured(WEIGHT)[1], of(torch.ones(4)))


def test_results_may_be_put_into_tensors() -> None:
    table, value, place = torch.randn(2, 3), torch.empty(2), torch.empty(2, dtype=torch.int64)

    def program() -> tuple[Tensor]:
        return (WEIGHT.sum() * torch.max(table, 1, out=(value, place))[0],)

    assert torch.equal(capture(program, (WEIGHT,))(WEIGHT)[0], program()[0])


def test_programs_that_are_cut_at_their_sums_may_change_what_they_made() -> None:
    def on(rows: int) -> Captured:
        data = torch.randn(rows, 4)

        def program() -> tuple[Tensor, ...]:
            twice = data + torch.ones_like(data).mul_(2.0)
            return torch.zeros(()), (WEIGHT * twice).sum(), WEIGHT + 1

        return capture(program, (WEIGHT, data))

    (usual, _) = cut(on(90), on(37), 1)
    (once,) = usual.passes
    weight, data = once.inputs
    torch.testing.assert_close(once(weight, data)[0].sum(), (WEIGHT * (data + 2.0)).sum())


def test_large_constants_do_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_MOST_HELD", 3)
    captured = capture(lambda: (WEIGHT * torch.ones(4),), (WEIGHT,))
    with Counted() as counted:
        captured(WEIGHT)
    assert counted.done["aten.ones.default"] == 1


@pytest.mark.parametrize("name", [*replaying._FUNCTIONS.split(), *replaying._METHODS])
def test_what_is_called_directly_is_torchs_own(name: str) -> None:
    """Not a function around several operations, which would choose among them anew."""
    where: Any = torch if name in replaying._FUNCTIONS.split() else torch.Tensor
    kinds = type(torch.add), type(torch.Tensor.add)
    assert isinstance(getattr(where, name), kinds)
    assert hasattr(torch.ops.aten, name)
