"""What users do around a fit: schedules, callbacks that change things, odd data, broken caches."""

import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from ppl_vi import CompileError, FitResult, fit
from ppl_vi.compilation import building, choosing
from ppl_vi.compilation.captured_loss import _hand_over
from ppl_vi.compilation.capturing import capture
from ppl_vi.compilation.watching import Undo
from ppl_vi.observing import memory_of
from ppl_vi.randomness import forked_rng

X = torch.randn(23, generator=torch.Generator().manual_seed(0)) + 1.0


def model(x: Tensor, *_: Any) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def run(program: Callable[..., Any] = model, data: Any = X, **options: Any) -> FitResult:
    settings: dict[str, Any] = {"steps": 30, "seed": 0, "progress": False, "compile": "auto"}
    return fit(program, "normal", data, **{**settings, **options})


def same(one: FitResult, other: FitResult, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.params, other.params, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def capture_short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 1)


def one_cycle(tensors: list[Tensor]) -> Any:
    """Its momenta move too, which a block of steps does not foresee."""
    return OneCycleLR(torch.optim.Adam(tensors), max_lr=0.1, total_steps=40)


def halving(tensors: list[Tensor]) -> Any:
    return StepLR(torch.optim.Adam(tensors, lr=0.1), step_size=7, gamma=0.5)


@pytest.mark.parametrize("optimizer", [one_cycle, halving])
def test_schedules_move_as_they_do_eager(optimizer: Any) -> None:
    captured, eager = run(optimizer=optimizer), run(optimizer=optimizer, compile=False)
    assert captured.execution.mode == "captured"
    same(captured, eager)


def test_a_schedule_goes_on_where_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> Path:
        raise CompileError("the compiler is out of order")

    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "_LOADED", {})
    monkeypatch.setattr(building, "_compile", fail)
    monkeypatch.setattr(choosing, "repays", lambda graph, steps: True)
    captured = run(optimizer=halving)
    assert captured.execution.mode == "captured" and "out of order" in captured.execution.reason
    same(captured, run(optimizer=halving, compile=False))


def test_views_are_put_back() -> None:
    own = torch.arange(4.0)
    with Undo():
        own[1:3].mul_(5.0)
        own.add_(1.0)
        own.view(2, 2)[0].zero_()
    assert torch.equal(own, torch.arange(4.0))


def test_tensors_inside_other_arguments() -> None:
    def nested(parts: dict[str, Tensor], scales: list[Tensor]) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(parts["x"])):
            pyro.sample("x", dist.Normal(loc, scales[0]), obs=parts["x"])

    data = ({"x": X}, [torch.tensor(2.0)])
    captured = run(nested, data)
    assert captured.execution.mode == "captured"
    same(captured, run(nested, data, compile=False))


def test_numbers_beside_tensors() -> None:
    def scaled(x: Tensor, scale: float) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    for scale in (1.0, 3.0):
        captured = run(scaled, (X, scale))
        assert captured.execution.mode == "captured"
        same(captured, run(scaled, (X, scale), compile=False))


def test_a_gradient_left_from_elsewhere_is_not_added() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def with_net(x: Tensor) -> None:
        pyro.module("net", net)
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + net(x[:, None])[:, 0], 1.0), obs=x)

    taken = []
    for leftover, how in ((None, False), (torch.full((1, 1), 1e6), "auto")):
        net.load_state_dict(start)
        net.weight.grad = leftover
        taken.append(run(with_net, compile=how))
    same(*taken)


@pytest.mark.parametrize(
    ("length", "compiled"),
    [(1, False), (7, False), (16, False), pytest.param(33, True, marks=pytest.mark.slow)],
)
def test_dropout_draws_as_eager(length: int, compiled: bool) -> None:
    """Torch draws short and long masks in different ways."""
    x = X.repeat(2)[:length]

    def dropping(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            kept = torch.nn.functional.dropout(torch.ones(len(x)), 0.4)
            pyro.sample("x", dist.Normal(loc * kept, 1.0), obs=x)

    eager = run(dropping, x, compile=False, steps=10)
    other = run(dropping, x, compile=compiled or "auto", steps=10)
    assert other.execution.mode == ("compiled" if compiled else "captured")
    same(other, eager, 1e-4 if compiled else 2e-6)


def test_others_may_print_during_a_capture(capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.nn.Parameter(torch.ones(2))

    def program() -> tuple[Tensor, ...]:
        other = threading.Thread(target=lambda: print("from elsewhere"))
        other.start()
        other.join()
        return (weight.sum(),)

    capture(program, (weight,))
    assert "from elsewhere" in capsys.readouterr().out


@pytest.mark.slow
def test_a_broken_library_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = run(compile=True)
    for folder in building.cache_folder().glob("*/"):
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "step.so").write_bytes(b"no library")
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "_LOADED", {})
    again = run(compile=True)
    assert (again.execution.compilations, again.execution.loads) == (1, 0)
    same(again, first, 0.0)


def test_a_parameter_that_a_callback_thaws_is_seen() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def with_net(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + net(x[:, None])[:, 0], 1.0), obs=x)

    def thaw(progress: Any) -> None:
        net.weight.requires_grad_(progress.step >= 10)

    net.eval().weight.requires_grad_(False)
    net.load_state_dict(start)
    result = run(with_net, callbacks=[thaw], steps=150)
    assert result.execution.mode == "eager" and "trainable" in result.execution.reason


def test_nothing_of_a_fit_is_left_in_the_random_state() -> None:
    with forked_rng(seed=3):
        run(partial(model), compile="auto")
        one = torch.rand(1)
    with forked_rng(seed=3):
        two = torch.rand(1)
    assert math.isclose(one.item(), two.item())


class Coder(torch.nn.Module):
    """Two hidden layers each way, so that the compiler uses memory again."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = self._layers(6, 4)
        self.decode = self._layers(2, 6)

    @staticmethod
    def _layers(given: int, made: int) -> torch.nn.Module:
        sizes = [torch.nn.Linear(given, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, made)]
        return torch.nn.Sequential(sizes[0], torch.nn.Tanh(), sizes[1], torch.nn.Tanh(), sizes[2])


def of_coder() -> dict[str, Any]:
    torch.manual_seed(0)
    coder, x = Coder(), torch.randn(40, 6)

    def decoded(x: Tensor) -> None:
        pyro.module("decode", coder.decode)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(coder.decode(z), 1.0).to_event(1), obs=x)

    def encoded(x: Tensor) -> None:
        pyro.module("encode", coder.encode)
        with pyro.plate("rows", len(x)):
            loc, scale = coder.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return {"model": decoded, "guide": encoded, "data": x}


def of_outside_matrix() -> dict[str, Any]:
    torch.manual_seed(0)
    matrix, y = torch.randn(5, 3), torch.randn(5, 2)

    def product(y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(torch.mm(matrix, weight), 1.0).to_event(2), obs=y)

    return {"model": product, "guide": "normal", "data": y}


def of_spread_values() -> dict[str, Any]:
    def spread(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        spread = scale.log().expand(23, 2).exp().reshape(-1)
        pyro.sample("x", dist.Normal(0.0, spread[:23]).to_event(1), obs=x)

    return {"model": spread, "guide": "normal", "data": X}


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(of_coder, marks=pytest.mark.slow),
        pytest.param(of_outside_matrix, marks=pytest.mark.slow),
        pytest.param(of_spread_values, marks=pytest.mark.slow),
    ],
)
def test_compiled_as_eager(setting: Callable[[], dict[str, Any]]) -> None:
    eager, compiled = (
        fit(**setting(), steps=12, compile=how, seed=0, progress=False) for how in (False, True)
    )
    assert compiled.execution.mode == "compiled"
    same(compiled, eager, 1e-4)


class HandedOn(torch.autograd.Function):
    """A product whose gradient is the other factor itself, not a copy."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(other)
        return own @ other

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        return ctx.saved_tensors[0], None


class Halved(torch.optim.SGD):
    """Changes gradients in place."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.5)
        return super().step(closure)


def test_gradients_that_share_their_memory() -> None:
    slope = torch.linspace(-1.0, 1.0, 23)

    def shared(x: Tensor) -> None:
        model(x)
        one, other, linear, upper, lower = (
            pyro.param(name, torch.zeros(size))
            for name, size in zip("abcde", (23, 23, 23, 3, 4), strict=True)
        )
        turned = pyro.param("f", torch.zeros(2, 3))
        pyro.factor("spread", -pyro.param("g", torch.zeros(5)).sum())
        pyro.factor("sum", -(one + other - x).square().sum())
        pyro.factor("handed_on", -HandedOn.apply(linear, slope))
        pyro.factor("joined", -(torch.cat([upper, lower]) - x[:7]).square().sum())
        pyro.factor("turned", -(torch.randn(4, 3) @ turned.t() - x[:8].view(4, 2)).square().sum())

    options: dict[str, Any] = {"optimizer": lambda tensors: Halved(tensors, lr=1e-3)}
    captured, eager = run(shared, **options), run(shared, compile=False, **options)
    assert captured.execution.mode == "captured"
    same(captured, eager)
    assert torch.equal(slope, torch.linspace(-1.0, 1.0, 23))


def test_gradients_are_handed_over_as_they_are_where_they_can_be() -> None:
    own, parts, plain = torch.ones(3), torch.ones(6), torch.zeros(3)
    parameters = [torch.zeros(3, requires_grad=True) for _ in range(5)]
    turned = torch.complex(plain, own).conj().imag  # lazily negated
    _hand_over([own, own, parts[:3], plain, turned], parameters, [plain])
    gradients = [parameter.grad for parameter in parameters]
    assert gradients[0] is own
    assert not any(gradient is given for gradient in gradients[1:] for given in (own, plain))
    memories = {
        memory_of(gradient) for gradient in [*gradients, parts, plain] if gradient is not None
    }
    assert len(memories) == 7
    values = [g.tolist() for g in gradients if g is not None and not g.is_neg()]
    assert values == [[1.0] * 3] * 3 + [[0.0] * 3, [-1.0] * 3]


def test_an_empty_group_of_parameters() -> None:
    def with_empty(tensors: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": tensors}, {"params": []}], lr=0.01)

    captured = run(optimizer=with_empty)
    assert captured.execution.mode == "captured"
    same(captured, run(optimizer=with_empty, compile=False))


def test_data_that_lie_in_columns() -> None:
    def flattened(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([12]).to_event(1), obs=x.t().view(-1))

    columns = torch.arange(12.0).view(4, 3).t()
    same(run(flattened, columns), run(flattened, columns, compile=False))


def test_a_number_read_from_an_outside_tensor_is_told() -> None:
    weight = torch.tensor(1.0)

    def weighted(x: Tensor) -> None:
        with pyro.poutine.scale(scale=weight.item()):
            model(x)

    with pytest.raises(CompileError, match=r"weight\.item\(\)"):
        run(weighted, compile=True)
    assert run(weighted).execution.mode == "eager"


def test_memory_shared_by_an_array_is_told() -> None:
    array = torch.tensor([1.0]).numpy()
    twin = torch.from_numpy(array)

    def shared(x: Tensor) -> None:
        loc = pyro.param("m", lambda: torch.from_numpy(array))
        at = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + at + twin, 1.0), obs=x)

    result = run(shared)
    assert result.execution.mode == "eager" and "shares its memory" in result.execution.reason


@pytest.mark.slow
def test_another_learning_rate_is_not_compiled_again() -> None:
    rates = [partial(torch.optim.Adam, lr=rate) for rate in (0.1, 0.03)]
    results = [run(compile=True, optimizer=optimizer) for optimizer in rates]
    assert results[1].execution.compilations == 0


def wide(x: Tensor) -> None:
    a = pyro.param("a", torch.zeros(300, 80))
    pyro.sample("u", dist.Normal(0.0, 1.0))
    total = (
        a * TABLE.t()
    ).sum() + a.sum()  # gradients that are transposed, and one number repeated
    pyro.sample("y", dist.Normal(total, 10.0), obs=torch.tensor(30.0))


TABLE = torch.randn(80, 300, generator=torch.Generator().manual_seed(5))


def test_gradients_are_laid_out_as_their_parameters() -> None:
    """torch's kernels of one pass, and hooks that clip, read and write gradients as they lie."""
    settings: dict[str, Any] = {"steps": 120, "progress": False, "seed": 0}
    captured, eager = (
        fit(wide, "normal", torch.zeros(1), compile=compile, **settings)
        for compile in ("auto", False)
    )
    assert captured.execution.mode == "captured"
    torch.testing.assert_close(captured.losses, eager.losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(captured.params["a"], eager.params["a"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", ["auto", False])
@pytest.mark.parametrize("scheduled", [True, False])
def test_a_step_of_the_users_own_is_called(compile: Any, scheduled: bool) -> None:
    calls = []

    def make(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=0.1)
        usual = adam.step
        adam.step = MethodType(lambda self, *args: calls.append(1) or usual(*args), adam)  # type: ignore
        return torch.optim.lr_scheduler.ExponentialLR(adam, 0.99) if scheduled else adam

    fit(normal_model, "normal", torch.zeros(3), optimizer=make, compile=compile, steps=120, **QUIET)
    assert len(calls) == 120


def normal_model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


QUIET: dict[str, Any] = {"progress": False, "seed": 0}


def test_a_rate_in_a_tensor_with_a_schedule() -> None:
    def make(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=torch.tensor(0.05), fused=True)
        return torch.optim.lr_scheduler.ExponentialLR(adam, 0.9)

    every = [
        fit(normal_model, "normal", torch.ones(3), optimizer=make, compile=c, steps=120, **QUIET)
        for c in ("auto", False)
    ]
    torch.testing.assert_close(every[0].losses, every[1].losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_a_fit_where_no_gradients_are_taken(outside: Any) -> None:
    usual = fit(normal_model, "normal", torch.ones(3), steps=120, **QUIET)
    with outside():
        found = fit(normal_model, "normal", torch.ones(3), steps=120, **QUIET)
    assert torch.equal(found.losses, usual.losses)


def test_a_parameter_frozen_by_a_callback_stays() -> None:
    def freeze(progress: Any) -> None:
        if progress.step == 110:
            parameter = pyro.get_param_store()._params["b"].requires_grad_(False)
            kept.append(parameter.clone())

    for compile in ("auto", False):
        kept: list[Tensor] = []
        result = fit(
            normal_model,
            sum_guide,
            torch.ones(3),
            callbacks=[freeze],
            compile=compile,  # type: ignore[arg-type]
            steps=150,
            **QUIET,
        )
        assert torch.equal(result.params["b"], kept[0])


def sum_guide(x: Tensor) -> None:
    mean = pyro.param("mean", torch.tensor(0.0)) + pyro.param("b", torch.tensor(0.0))
    pyro.sample("loc", dist.Normal(mean, 0.1))
