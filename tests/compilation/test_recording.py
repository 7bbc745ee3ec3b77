"""What a program does to tensors is written down whole, and without what changes nothing."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppl_vi.compilation.capturing import Captured, capture
from ppl_vi.errors import CompileError
from ppl_vi.randomness import forked_rng

WEIGHT = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
OTHER = torch.tensor([3.0, 1.0, -1.0])


def targets(captured: Captured) -> list[str]:
    return [str(node.target) for node in captured.graph.graph.nodes if node.op == "call_function"]


def replayed(program: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Captured]:
    """A program's value, its graph's on the same draws, and the graph."""
    captured = capture(lambda: (program(),), (WEIGHT,))
    with forked_rng(seed=1), torch.no_grad():
        expected = program().clone()
    with forked_rng(seed=1):
        return expected, captured(WEIGHT)[0], captured


def made_and_changed() -> Tensor:
    """A tensor made of numbers starts anew in each run."""
    start = torch.tensor([1.0, 2.0, 3.0])
    start[0] += 1.0
    return (start * WEIGHT).sum()


def read_before_and_after() -> Tensor:
    """The same sum twice, of a tensor that changes in between, by a view."""
    own = WEIGHT.detach() * 2
    before = own + OTHER
    own.view(3, 1)[1:].mul_(3.0)
    return (before * (own + OTHER)).sum()


def drawn_twice() -> Tensor:
    return torch.randn(3).mul_(OTHER).sum() + torch.randn(3).sum() + torch.rand(2).sum()


def with_a_gradient() -> Tensor:
    loss = ((WEIGHT * 1.0) ** 2 * WEIGHT.expand(3)).view(3).sum()
    (gradient,) = torch.autograd.grad(loss, WEIGHT)
    return (gradient * gradient).sum()


def several_outputs() -> Tensor:
    values, places = WEIGHT.sort()
    return (values * places).sum() + torch.stack(WEIGHT.unbind()).max(0).values


@pytest.mark.parametrize(
    "program",
    [made_and_changed, read_before_and_after, drawn_twice, with_a_gradient, several_outputs],
)
def test_a_graph_repeats_its_program(program: Callable[[], Tensor]) -> None:
    with torch.enable_grad():
        expected, found, captured = replayed(_differentiable(program))
    assert torch.equal(found, expected)
    with forked_rng(seed=1):
        assert torch.equal(captured(WEIGHT)[0], expected)  # and once more


def _differentiable(program: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.enable_grad():
            return program().detach()

    return run


def test_views_ones_and_repetitions_are_left_out() -> None:
    def program() -> Tensor:
        twice = (WEIGHT.view(3) * 1.0).detach().exp() + (WEIGHT / 1).expand(3).exp()
        return twice.pow(1.0).sum()

    _, _, captured = replayed(program)
    assert targets(captured) == ["aten.exp.default", "aten.add.Tensor", "aten.sum.default"]


def test_repeated_draws_are_not_one() -> None:
    _, _, captured = replayed(lambda: torch.randn(3).sum() * torch.randn(3).sum())
    assert sum("randn" in name or "normal" in name for name in targets(captured)) == 2


def test_numbers_that_never_change_may_be_read() -> None:
    def program() -> Tensor:
        count = torch.ones(3).sum().item()
        return WEIGHT.sum() * (count if torch.eye(2).trace() > 1 else 0.0)

    expected, found, _ = replayed(program)
    assert torch.equal(found, expected)


def test_a_counter_in_a_tensor_may_not_be_read() -> None:
    count = torch.zeros(())

    def program() -> Tensor:
        count.add_(1.0)
        return WEIGHT.sum() * count.item()

    with pytest.raises(CompileError, match=r"count\.item\(\)"):
        capture(lambda: (program(),), (WEIGHT,))
    assert count == 0.0


def test_a_generator_of_its_own_is_told() -> None:
    own = torch.Generator()
    with pytest.raises(CompileError, match="generator of its own"):
        capture(lambda: (WEIGHT.sum() * torch.randn(3, generator=own).sum(),), (WEIGHT,))


def test_graphs_of_one_program_are_the_same_text() -> None:
    graphs = [replayed(drawn_twice)[2].graph.code for _ in range(3)]
    assert len(set(graphs)) == 1


_LEAN = """
import sys, torch, pyro, pyro.distributions as dist
from ppl_vi import fit

def model(y):
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z.unsqueeze(-1), scale).expand(y.shape).to_event(1), obs=y)

def mixture(y):
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        own = pyro.sample("own", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(mean[own], 1.0), obs=y)

def told(name, *heavy):
    loaded = [each for each in ("torch._dynamo", "sympy", *heavy) if each in sys.modules]
    print(f"{name}: {loaded}")

y = torch.randn(6_000, 2)
for compile, mode, steps in ((False, "eager", 9), ("auto", "captured", 200), (True, "compiled", 200)):
    result = fit(model, "normal", y, steps=steps, compile=compile, progress=False)
    assert result.execution.mode == mode, result.execution
    told(mode, "arviz", "pandas")
    if mode == "captured":
        fit(mixture, "normal", y[:50, 0], steps=9, progress=False)
        told("states summed out", "arviz", "pandas")
fit(mixture, "cavi", y[:50, 0], steps=9, progress=False)
told("coordinate ascent")  # scikit-learn, whose clusters it starts from, loads pandas
"""
_NOTHING = [
    f"{name}: []"
    for name in ("eager", "captured", "states summed out", "compiled", "coordinate ascent")
]


def modules_of_compiler() -> list[str]:
    """Those that another process loads for fits, up to each."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:torch", "-c", _LEAN],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return (done.stdout if done.returncode == 0 else done.stderr).splitlines()


def test_fits_load_no_compiler() -> None:
    """Which would take longer than a short fit's steps; one that was compiled before needs none."""
    first = modules_of_compiler()
    assert first[:3] == _NOTHING[:3]
    assert first == _NOTHING or modules_of_compiler() == _NOTHING
