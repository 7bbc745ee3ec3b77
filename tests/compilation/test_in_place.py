"""Large tensors that a loop changes in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.compilation import lasting
from ppl_vi.compilation.building import Builds, Compiled

Turn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SIZE, TURNS = 60_000, 5
WAYS: dict[str, Turn] = {
    "both": lambda a, b: (0.5 * a + b, b - 0.25 * a),  # each needs the other as it was
    "swapped": lambda a, b: (b, a),
    "turned": lambda a, b: (b.flip(0), a + 1),
    "one": lambda a, b: (a, a.cumsum(0) / SIZE + b),
}
"""Two large tensors from one turn to the next."""


def loop(*tensors: Tensor) -> Any:
    """Turns of a number and two large tensors for each way, in torch's loop."""
    from torch._higher_order_ops.while_loop import while_loop_op

    def goes_on(number: Tensor, *large: Tensor) -> Tensor:
        return number < TURNS

    def once_more(number: Tensor, *large: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(WAYS.values(), large[::2], large[1::2], strict=True)
        after = [tensor for turn, *pair in pairs for tensor in turn(*pair)]
        return number + 1, *(tensor.clone() for tensor in after)

    operator: Any = while_loop_op
    return operator(goes_on, once_more, tensors, ())


class Loop(NamedTuple):
    """A loop in a library, its inputs, and its C++."""

    run: Compiled
    inputs: list[Tensor]
    code: str

    def pair(self, way: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        first = 1 + 2 * list(WAYS).index(way)
        return tensors[first : first + 2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Into a folder of its own."""
    folder, written, whole = str(tmp_path_factory.mktemp("loops")), [], lasting.lasting

    def graph() -> GraphModule:
        return make_fx(loop, tracing_mode="fake")(*inputs)

    def noted(code: str) -> str:
        written.append(whole(code))
        return written[-1]

    large = torch.randn(2 * len(WAYS), SIZE, generator=torch.Generator().manual_seed(0))
    inputs = [torch.tensor(0), *(row.clone() for row in large)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PPL_VI_CACHE", folder)
        patched.setattr(lasting, "lasting", noted)
        run = Builds().build(folder, graph, inputs)
    return Loop(run, inputs, "".join(written))


@pytest.mark.parametrize("way", WAYS)
def test_turns_give_what_they_gave_and_leave_their_inputs(way: str, compiled: Loop) -> None:
    before = [tensor.clone() for tensor in compiled.pair(way, compiled.inputs)]
    first, second = before
    for _ in range(TURNS):
        first, second = WAYS[way](first, second)
    for _ in range(2):
        found = compiled.run(compiled.inputs)
        assert found[0] == TURNS
        torch.testing.assert_close(compiled.pair(way, found), [first, second])
        assert all(map(torch.equal, compiled.pair(way, compiled.inputs), before))
    assert compiled.inputs[0] == 0


def test_a_large_parameter_is_not_copied_in_each_step(compiled: Loop) -> None:
    body = compiled.code.split("while (1) {")[1].split("    }\n")[0]
    assert not re.search(r"^ *\w+ = std::move", body, re.M)
    assert body.count("std::swap") == 2  # of the question whether to go on, and the turn's number
