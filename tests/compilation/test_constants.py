"""What graphs know of constants: folded results, whole indices; and sums of the compiler's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_cpp_code

from ppl_vi.compilation import Builds, capture, compiled, folded
from ppl_vi.compilation.mending import mended


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


def test_results_of_large_constants_are_held() -> None:
    data, weight = torch.randn(3_000, 4), torch.randn(4)
    captured = capture(lambda: ((data - data.mean(0)).square() @ weight,), (weight,))
    expected = captured(weight)
    made = folded(captured)
    assert not {"aten.pow.Tensor_Scalar", "aten.mean.dim", "aten.sub.Tensor"} & set(
        targets(made.graph)
    )
    torch.testing.assert_close(made(weight), expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(made(2 * weight)[0], 2 * expected[0])


def test_what_a_program_changes_is_not_folded() -> None:
    count, weight = torch.zeros(20_000), torch.ones(20_000)

    def program() -> tuple[Tensor, ...]:
        count.add_(1.0)
        return (count * weight,)

    made = folded(capture(program, (weight,)))
    assert [made(weight)[0][0].item() for _ in range(3)] == [1.0, 2.0, 3.0]


def test_what_is_changed_on_the_way_is_not_folded() -> None:
    data, weight = torch.randn(20_000), torch.ones(20_000)

    def program() -> tuple[Tensor, ...]:
        centred = data - 1.0
        centred[:10_000].mul_(2.0)  # a change of a view
        return (centred * weight,)

    made = folded(capture(program, (weight,)))
    for _ in range(3):
        assert torch.equal(made(weight)[0], program()[0])


def test_draws_are_not_folded() -> None:
    weight = torch.ones(20_000)
    made = folded(capture(lambda: (torch.randn(20_000) * weight,), (weight,)))
    assert not torch.equal(made(weight)[0], made(weight)[0])


@pytest.mark.parametrize("dim", [0, 1])
def test_every_row_in_order_is_another_shape(dim: int) -> None:
    table = torch.randn(3, 5, requires_grad=True)

    def program() -> tuple[Tensor, ...]:
        z = torch.arange(table.shape[dim]).reshape(-1, 1, 1)  # as a latent is enumerated
        picked = table[z] if dim == 0 else table[:, z]
        value = (picked.square() * torch.arange(2.0).reshape(2, 1)[..., :1]).sum()
        return value, *torch.autograd.grad(value, [table])

    captured = capture(program, (table,))
    assert not any("index" in target for target in targets(captured.graph))
    for mine, own in zip(captured(table), program(), strict=True):
        torch.testing.assert_close(mine, own.detach())


def test_rows_that_are_changed_after_they_were_picked_are_picked() -> None:
    weight = torch.ones(4)

    def program() -> tuple[Tensor, ...]:
        table = weight * 2.0
        before = table[torch.arange(4)]
        table.mul_(0.5)
        return (before, table)

    captured = capture(program, (weight,))
    assert torch.equal(captured(3 * weight)[0], 6 * weight)


def test_other_orders_stay_indices() -> None:
    table, z = torch.randn(3, 5), torch.tensor([2, 1, 0])
    captured = capture(lambda: (table[z], table[torch.arange(2)]), (table,))
    assert targets(captured.graph).count("aten.index.Tensor") == 2
    torch.testing.assert_close(captured(table)[0], table[z])


@pytest.mark.slow
def test_sums_into_rows_land_where_they_belong(two_threads: None) -> None:
    """Torch 2.13 writes outside the tensor on two threads: pytorch issue 191837."""
    weight, scale = torch.randn(8, 10), torch.randn(10, 1, 8)

    def program() -> tuple[Tensor, ...]:
        rows = torch.arange(1, 11).reshape(10, 1)
        value = scale * weight.T.reshape(10, 1, 8).exp()
        return (torch.zeros(11, 8).index_put((rows,), value, accumulate=True),)

    made = compiled(capture(program, (weight, scale)), Builds())
    torch.testing.assert_close(made(weight, scale), program())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
def test_a_table_is_computed_once_however_many_entries_are_taken() -> None:
    table, index = torch.rand(50) + 1, torch.randint(50, (7_000,))
    with mended(), torch._inductor.config.patch(fx_graph_cache=False):
        taken = torch.compile(lambda table, index: table.digamma()[index])
        _, code = run_and_get_cpp_code(taken, table, index)
    loops = re.findall(r"<static_cast<int64_t>\((\d+)L\); x0\+=", code[: code.index(".digamma(")])
    assert loops == ["50"]
