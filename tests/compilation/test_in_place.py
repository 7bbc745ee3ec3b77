"""Large tensors that a loop changes in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.compilation import building, lasting
from ppl_vi.compilation.building import Builds, Compiled

Turn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SIZE = 60_000


def loop_of(turn: Turn, turns: int) -> Callable[..., Any]:
    """Turns of two large tensors, in torch's loop."""
    from torch._higher_order_ops.while_loop import while_loop_op

    def goes_on(number: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return number < turns

    def once_more(number: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return number + 1, *(tensor.clone() for tensor in turn(first, second))

    def loop(*tensors: Tensor) -> Any:
        operator: Any = while_loop_op
        return operator(goes_on, once_more, tensors, ())

    return loop


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The C++ of the loops that a test has compiled, into a folder of its own."""
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    written: list[str] = []
    whole = lasting.lasting
    monkeypatch.setattr(lasting, "lasting", lambda code: written.append(whole(code)) or written[-1])
    return written


def compiled(turn: Turn, inputs: list[Tensor]) -> Compiled:
    """Five turns in a library."""

    def graph() -> GraphModule:
        return make_fx(loop_of(turn, 5), tracing_mode="fake")(*inputs)

    return Builds().build(str(building.cache_folder()), graph, inputs)  # the test's own


@pytest.mark.parametrize(
    "turn",
    [
        lambda a, b: (0.5 * a + b, b - 0.25 * a),  # each needs the other as it was
        lambda a, b: (b, a),
        lambda a, b: (b.flip(0), a + 1),
        lambda a, b: (a, a.cumsum(0) / SIZE + b),
    ],
    ids=["both", "swapped", "turned", "one"],
)
def test_turns_give_what_they_gave_and_leave_their_inputs(turn: Turn, loops: list[str]) -> None:
    inputs = [torch.tensor(0), torch.randn(SIZE), torch.randn(SIZE)]
    before = [tensor.clone() for tensor in inputs]
    run = compiled(turn, inputs)
    first, second = before[1:]
    for _ in range(5):
        first, second = turn(first, second)
    for _ in range(2):
        number, *found = run(inputs)
        assert number == 5
        torch.testing.assert_close(found, [first, second])
        assert all(map(torch.equal, inputs, before))
    assert loops


def test_a_large_parameter_is_not_copied_in_each_step(loops: list[str]) -> None:
    inputs = [torch.tensor(0), torch.randn(SIZE), torch.randn(SIZE)]
    compiled(lambda a, b: (0.5 * a + b, b - 0.25 * a), inputs)
    body = loops[0].split("while (1) {")[1]
    assert "std::move" not in body.split("if (!")[1]
    assert body.count("std::swap") == 2  # of the question whether to go on, and the turn's number
