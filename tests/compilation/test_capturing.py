"""What a graph can repeat is captured; what it cannot is told by the line that does it."""

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_vi.compilation.capturing import capture, check_same
from ppl_vi.compilation.graphs import functional
from ppl_vi.errors import CompileError

WEIGHT = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
CALLS = [0]
GENERATOR = np.random.default_rng(0)


def item(z: Tensor) -> Any:
    return z + z.sum().item()


def branch(z: Tensor) -> Any:
    if z.sum() > 0:
        return z + 1
    return z


def number(z: Tensor) -> Any:
    return z * float(z[0])


def array(z: Tensor) -> Any:
    return z + torch.as_tensor(z.detach().numpy() ** 2)


def numpy_function(z: Tensor) -> Any:
    return z + torch.as_tensor(np.exp(z.detach()))


def listed(z: Tensor) -> Any:
    return z + torch.tensor(z.tolist())


def printed(z: Tensor) -> Any:
    print("a step")
    return z


def printed_tensor(z: Tensor) -> Any:
    print(f"{z}")
    return z


def python_random(z: Tensor) -> Any:
    return z + random.random()


def numpy_random(z: Tensor) -> Any:
    return z + np.random.rand()


def own_generator(z: Tensor) -> Any:
    return z + GENERATOR.normal()


def counter(z: Tensor) -> Any:
    CALLS[0] += 1
    return z + CALLS[0]


NAMED = {
    item: r"z\.sum\(\)\.item\(\)",
    branch: r"if z\.sum\(\) > 0",
    number: r"float\(z\[0\]\)",
    array: r"z\.detach\(\)\.numpy\(\)",
    numpy_function: r"np\.exp\(z\.detach\(\)\)",
    listed: r"z\.tolist\(\)",
    printed: r'print\("a step"\)',
    printed_tensor: r"print\(f",
}


def program(body: Callable[[Tensor], Any]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: ((body(torch.randn(3)) * WEIGHT).sum(),)


@pytest.mark.parametrize("body", NAMED, ids=lambda body: body.__name__)
def test_the_line_is_named(body: Callable[[Tensor], Any]) -> None:
    line = body.__code__.co_firstlineno
    with pytest.raises(CompileError, match=NAMED[body]) as raised:
        capture(program(body), (WEIGHT,))
    found = re.search(r"test_capturing\.py, line (\d+)", str(raised.value))
    assert found and 0 < int(found.group(1)) - line <= 2


@pytest.mark.parametrize("body", [python_random, numpy_random, own_generator, counter])
def test_what_changes_outside_tensors_is_told(body: Callable[[Tensor], Any]) -> None:
    with pytest.raises(CompileError, match=r"random|counter"):
        capture(program(body), (WEIGHT,))


def test_a_later_change_is_found() -> None:
    scale = [1.0]
    made = program(lambda z: z * scale[0])
    captured = capture(made, (WEIGHT,))
    check_same(captured, made, captured.inputs)
    scale[0] = 2.0
    with pytest.raises(CompileError, match="changes outside"):
        check_same(captured, made, captured.inputs)


def test_tensors_that_a_program_holds_stay_its_own() -> None:
    scale = torch.tensor(1.0)
    captured = capture(lambda: (scale * WEIGHT.sum(),), (WEIGHT,))
    scale.fill_(3.0)
    assert captured(WEIGHT)[0] == 3.0 * WEIGHT.sum()


def test_the_graph_is_a_function_of_its_inputs_and_fresh_draws() -> None:
    captured = capture(program(lambda z: z), (WEIGHT,))
    torch.manual_seed(3)
    drawn = captured(2 * WEIGHT)[0], captured(2 * WEIGHT)[0]
    torch.manual_seed(3)
    expected = (2 * WEIGHT * torch.randn(3)).sum(), (2 * WEIGHT * torch.randn(3)).sum()
    assert torch.equal(torch.stack(drawn), torch.stack(expected)) and drawn[0] != drawn[1]


def test_nothing_is_left_changed() -> None:
    norm = torch.nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    captured = capture(lambda: (norm(torch.randn(5, 2)).square().sum(),), tuple(norm.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(norm.state_dict()), before, rtol=0, atol=0)
    captured(*norm.parameters())
    assert norm.num_batches_tracked == 1 and not torch.equal(
        norm.running_mean, before["running_mean"]
    )


def test_changes_in_place_become_outputs() -> None:
    total = torch.zeros(2)

    def program() -> tuple[Tensor, ...]:
        total.mul_(0.5).add_(WEIGHT[:2].detach())
        return (total.sum() * WEIGHT.sum(),)

    captured = capture(program, (WEIGHT,))
    graph = functional(captured.graph, captured.tensors, captured.changed)
    assert [captured.tensors[i] is total for i in captured.changed] == [True]
    for pure in (graph, captured.pure):
        with torch.no_grad():
            value, new = pure(*captured.tensors)
        assert torch.equal(total, torch.zeros(2)) and torch.equal(new, WEIGHT[:2])
        assert torch.equal(value, new.sum() * WEIGHT.sum())


def test_an_impossible_decomposition_is_a_loss_that_is_nan() -> None:
    matrix = torch.nn.Parameter(torch.eye(2))
    captured = capture(lambda: (torch.linalg.cholesky(matrix).sum(),), (matrix,))
    assert torch.isfinite(captured(matrix)[0])
    assert torch.isnan(captured(-matrix)[0])
