"""Blocks of compiled steps: where they are cut changes nothing, and all is told at their ends."""

import math
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import ELBO, CompileError, FitResult, fit
from ppl_vi.compilation import building, choosing, flat

X = torch.randn(23, generator=torch.Generator().manual_seed(0)) + 1.0
BETA = torch.tensor(1.0)
BAD = {"step": math.inf, "seen": 0, "scale": 1.0}


def model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, BETA), obs=x)


def guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor(0.0)), scale))


def run(steps: int = 230, **options: Any) -> FitResult:
    settings: dict[str, Any] = {"objective": ELBO(2), "batch_size": 8, "seed": 0, "compile": True}
    return fit(model, guide, X, steps=steps, progress=False, **{**settings, **options})


def same(one: FitResult, other: FitResult, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.params, other.params, rtol=tolerance, atol=tolerance)


def test_eager_and_compiled_agree_and_repeat() -> None:
    compiled = run()
    same(compiled, run(compile=False), 1e-4)
    same(compiled, run())


def test_ragged_batches_are_captured_once_and_compiled_once() -> None:
    execution = run().execution
    assert execution.mode == "compiled"
    assert execution.captures == 2  # batches of 8 rows and of 7
    assert execution.compilations + execution.loads == 2


def test_where_a_run_is_cut_changes_nothing() -> None:
    told: list[int] = []
    cut = run(callbacks=[lambda progress: told.append(progress.step)])
    same(cut, run())
    assert told == list(range(1, 231))


def test_a_callback_stops_it() -> None:
    stopped = run(callbacks=[lambda progress: progress.step == 150])
    whole = run()
    assert stopped.num_steps == 150
    torch.testing.assert_close(stopped.losses, whole.losses[:150], rtol=0, atol=0)


@pytest.mark.slow
def test_rates_and_weights_do_not_recompile() -> None:
    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=0.1)
        return torch.optim.lr_scheduler.CosineAnnealingLR(adam, 100)

    def weigh(progress: Any) -> None:
        BETA.fill_(1.0 + 0.1 * progress.step)

    settings: dict[str, Any] = {"optimizer": optimizer, "callbacks": [weigh], "steps": 30}
    try:
        results = []
        for compile in (False, True):
            BETA.fill_(1.0)
            results.append(run(**settings, compile=compile))
    finally:
        BETA.fill_(1.0)
    eager, compiled = results
    same(compiled, eager, 1e-4)
    assert compiled.execution.captures == 2
    assert compiled.execution.compilations + compiled.execution.loads == 2


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_bad_number_is_told_by_its_step(compile: bool) -> None:
    blow_up = partial(torch.optim.SGD, lr=1e6)
    with pytest.raises(FloatingPointError) as raised:
        run(optimizer=blow_up, compile=compile)
    message = str(raised.value)
    assert message.startswith("step ") and "gradients that are not finite: 'scale'" in message
    if compile:
        with pytest.raises(FloatingPointError) as eager:
            run(optimizer=blow_up, compile=False)
        assert message == str(eager.value)


def sometimes_nan(x: Tensor) -> None:
    model(x)
    loc = pyro.sample("shift", dist.Normal(0.0, 1.0))
    pyro.factor("nan", (loc + 1.0).log())


def guide_of_both(x: Tensor) -> None:
    guide(x)
    pyro.sample("shift", dist.Normal(pyro.param("shift_loc", torch.tensor(0.0)), 1.0))


@pytest.mark.slow
def test_bad_steps_are_skipped_as_eager_ones_are() -> None:
    settings: dict[str, Any] = {"on_nan": "skip", "steps": 40, "seed": 0, "progress": False}
    eager, compiled = (
        fit(sometimes_nan, guide_of_both, X, compile=compile, objective=ELBO(1), **settings)
        for compile in (False, True)
    )
    bad = ~torch.isfinite(eager.losses)
    assert 0 < bad.sum() < 20
    assert torch.equal(~torch.isfinite(compiled.losses), bad)
    torch.testing.assert_close(compiled.params, eager.params, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_program_that_changes_later_goes_on_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 1)
    monkeypatch.setattr(choosing, "repays", lambda graph, steps: True)
    weight = [1.0]

    def changing(x: Tensor) -> None:
        with pyro.poutine.scale(scale=weight[0]):
            model(x)

    def change(progress: Any) -> None:
        weight[0] = 0.5 if progress.step >= 50 else 1.0

    def taken(compile: Any) -> FitResult:
        weight[0] = 1.0
        settings: dict[str, Any] = {"callbacks": [change], "steps": 230, "seed": 0}
        return fit(
            changing, guide, X, compile=compile, objective=ELBO(2), progress=False, **settings
        )

    with pytest.warns(UserWarning, match="Steps 33 to 64 may have repeated an old value"):
        result = taken("auto")
    assert result.execution.mode == "eager" and "outside torch's tensors" in result.execution.reason
    torch.testing.assert_close(result.losses[:50], taken(False).losses[:50], rtol=1e-4, atol=1e-4)
    with pytest.raises(CompileError, match="outside torch's tensors"):
        taken(True)


def test_what_callbacks_change_from_the_start_is_seen_at_once() -> None:
    weight = [0.1]

    def annealed(x: Tensor) -> None:
        with pyro.poutine.scale(scale=weight[0]):
            model(x)

    def anneal(progress: Any) -> None:
        weight[0] = min(1.0, progress.step / 100)

    def losses(compile: Any) -> Tensor:
        weight[0] = 0.1
        settings: dict[str, Any] = {"callbacks": [anneal], "steps": 150, "seed": 0}
        return fit(annealed, guide, X, compile=compile, progress=False, **settings).losses

    with pytest.warns(UserWarning, match="Steps 1 to 1 "):
        found = losses("auto")
    torch.testing.assert_close(found, losses(False), rtol=1e-4, atol=1e-4)


def counted(x: Tensor) -> None:
    BAD["seen"] += 1
    pyro.sample("loc", dist.Normal(float(BAD["seen"]), 10.0))


def chance(x: Tensor) -> None:
    pyro.sample("loc", dist.Normal(random.random(), 10.0))


def branching(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    if (loc > 0).any():
        loc = loc.clamp(max=5.0)
    pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("program", "reason"),
    [(counted, "outside torch"), (chance, "random"), (branching, r"if \(loc > 0\)\.any\(\)")],
)
def test_what_cannot_be_captured_runs_eager(
    program: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 1)
    settings: dict[str, Any] = {"steps": 5, "seed": 0, "progress": False}
    result = fit(program, guide, X, compile="auto", **settings)
    assert result.execution.mode == "eager"
    assert torch.isfinite(result.losses).all()
    with pytest.raises(CompileError, match=reason):
        fit(program, guide, X, compile=True, **settings)


def test_few_steps_are_not_looked_at() -> None:
    assert run(steps=3, compile="auto").execution.mode == "eager"


def test_without_a_compiler_steps_are_captured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "_LOADED", {})
    monkeypatch.setattr(building, "has_compiler", lambda: False)
    monkeypatch.setattr(choosing, "repays", lambda graph, steps: True)
    result = run(steps=600, compile="auto")
    assert result.execution.mode == "captured" and "C++ compiler" in result.execution.reason
    with pytest.raises(CompileError, match=r"C\+\+ compiler"):
        run(steps=5)


def test_a_second_process_finds_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(steps=5)  # in the cache of this process and on disk from here on
    monkeypatch.setattr(building, "_LOADED", {})
    execution = run(steps=5).execution
    assert (execution.compilations, execution.loads) == (0, 2)
    shutil.copytree(building.cache_folder(), tmp_path / "moved")
    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path / "moved"))
    monkeypatch.setattr(building, "_LOADED", {})
    assert run(steps=5).execution.compilations == 0


def two_groups(tensors: list[Tensor]) -> torch.optim.Optimizer:
    first, *others = tensors
    groups = [{"params": others, "lr": 0.02}, {"params": [first], "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=0.05)


@pytest.mark.slow
def test_large_parameters_are_updated_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not copied next to the others; the numbers are the same."""

    def wide(x: Tensor) -> None:
        rows = pyro.sample("rows", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        columns = pyro.sample("columns", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + rows.sum() + columns.prod(), 1.0), obs=x)

    monkeypatch.setattr(flat, "_LARGE", 6)
    monkeypatch.setattr(choosing, "FEW_STEPS", 1)
    taken = [
        fit(wide, "normal", X, steps=20, optimizer=two_groups, compile=c, seed=0, progress=False)
        for c in ("auto", False, True)
    ]
    assert [result.execution.mode for result in taken] == ["captured", "eager", "compiled"]
    same(taken[0], taken[1], 2e-6)
    same(taken[2], taken[1], 1e-4)


@pytest.mark.parametrize("compile", ["auto", pytest.param(True, marks=pytest.mark.slow)])
def test_numbers_that_a_callback_lays_elsewhere_are_seen(compile: Any) -> None:
    """As ``.data`` in other memory, which is written to from then on, too."""

    def move(progress: Any) -> None:
        if progress.step == 50:
            parameter = pyro.get_param_store()._params["loc_loc"]
            parameter.data = parameter.data + 3.0

    moved, eager, still = (
        run(compile=c, callbacks=callbacks)
        for c, callbacks in ((compile, [move]), (False, [move]), (False, []))
    )
    assert moved.execution.mode != "eager"
    same(moved, eager, 1e-4)
    assert abs(eager.losses[50] - still.losses[50]) > 1.0  # it is felt
