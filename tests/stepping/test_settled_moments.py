"""Moments whose gradients have become zeros end as zeros, not as the slowest numbers that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import fit
from ppl_vi.compilation import blocks, flat
from ppl_vi.compilation.flat import FlatParameters
from ppl_vi.stepping import moments as moments_module
from ppl_vi.stepping.moments import SETTLED_EVERY, settle, settled
from ppl_vi.stepping.pyro_stepper import PyroStepper

LEAST = torch.finfo(torch.float32).tiny
STEPS = 1_000
"""0.9 to this power is far below the smallest normal number."""


def model() -> None:
    pyro.sample("z", dist.Normal(3.0, 1.0))
    slope = pyro.param("slope", torch.ones(4))
    pyro.factor("rectified", -torch.relu(slope).sum())  # falls to zero, and has no gradient there


def guide() -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("z", dist.Normal(loc, 1.0))


def moments_after(make: Callable[[Any], torch.optim.Optimizer], compile: Any) -> list[Tensor]:
    """Of all parameters, after a fit."""
    made: list[torch.optim.Optimizer] = []
    made_flat: list[FlatParameters] = []

    def optimizer(tensors: Any) -> torch.optim.Optimizer:
        made.append(make(tensors))
        return made[-1]

    def flattened(*arguments: Any) -> FlatParameters:
        made_flat.append(FlatParameters(*arguments))
        return made_flat[-1]

    with patch.object(blocks, "FlatParameters", flattened):
        result = fit(
            model,
            guide,
            steps=STEPS,
            tol=None,
            seed=0,
            optimizer=optimizer,
            compile=compile,
            progress=False,
        )
    assert (result.params["slope"] <= 0).all()
    assert bool(made_flat) is (compile is not False)
    if made_flat:
        made_flat[-1].hand_over()
    states = [dict(state) for state in made[-1].state.values()]
    return [v for state in states for n, v in state.items() if n != "step" and v is not None]


def adam(tensors: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(tensors, lr=0.05, betas=(0.9, 0.9))


def momentum(tensors: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(tensors, lr=0.01, momentum=0.9)


def none_is_subnormal(moments: list[Tensor]) -> bool:
    entries = torch.cat([moment.reshape(-1) for moment in moments]).abs()
    assert entries.isfinite().all()
    return not ((entries > 0) & (entries < LEAST)).any()


@pytest.mark.parametrize("make", [adam, momentum])
@pytest.mark.parametrize("compile", [False, "auto"])
def test_no_moment_stays_subnormal(make: Any, compile: Any) -> None:
    moments = moments_after(make, compile)
    assert none_is_subnormal(moments)
    assert any((moment == 0).all() for moment in moments)  # of the slope
    assert any((moment != 0).all() for moment in moments)  # of the location


@pytest.mark.slow
def test_compiled_steps_leave_none_either() -> None:
    assert none_is_subnormal(moments_after(adam, True))


def test_torch_alone_leaves_some() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = adam([parameter])
    for step in range(STEPS):
        parameter.grad = torch.full((1,), float(step == 0))
        optimizer.step()
    assert not none_is_subnormal([optimizer.state[parameter]["exp_avg"]])


def test_optimizers_of_pyro_are_settled() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    stepper = PyroStepper(pyro.optim.Adam({"lr": 0.1}))
    parameter.grad = torch.tensor([1e-33, 1.0])
    stepper.step({"p": parameter}, 0.0)
    stepper.settle()
    moments = stepper.saved({"p": parameter})["moments"]["p"]
    assert moments["exp_avg"].tolist() == [0.0, pytest.approx(0.1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_else_is_left_to_the_bit(dtype: torch.dtype) -> None:
    kind = torch.finfo(dtype)
    average = torch.tensor(
        [1.0, -1e-12, kind.tiny, -kind.tiny / 2, torch.nan, torch.inf, 0.0], dtype=dtype
    )
    squares = torch.tensor(
        [kind.tiny, 1.0, 0.5, kind.tiny, torch.nan, torch.inf, 1e-9], dtype=dtype
    )
    found = settled({"exp_avg": average, "exp_avg_sq": squares, "step": torch.tensor(3.0)})
    assert set(found) == {"exp_avg", "exp_avg_sq"}
    zeroed = torch.tensor([False, False, True, True, False, False, True])
    expected = average.masked_fill(zeroed, 0.0)
    assert torch.equal(found["exp_avg"].nan_to_num(7.0), expected.nan_to_num(7.0))
    # Squares divide the other averages, and are left with them.
    last = squares.clone()
    last[3] = kind.tiny / kind.eps
    assert torch.equal(found["exp_avg_sq"].nan_to_num(7.0), last.nan_to_num(7.0))


def test_blocks_end_where_moments_are_settled() -> None:
    assert SETTLED_EVERY % blocks.BLOCK == 0


def test_nothing_is_divided_by_zero_without_epsilon() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.05, betas=(0.9, 0.9), eps=0.0)
    for step in range(2 * STEPS):
        parameter.grad = torch.tensor([1.0 if step < 5 else 0.0, 1.0])
        optimizer.step()
        if step % SETTLED_EVERY == 0:
            settle(optimizer)
    assert parameter.isfinite().all()
    assert optimizer.state[parameter]["exp_avg"][0] == 0
    assert none_is_subnormal([optimizer.state[parameter]["exp_avg_sq"]])


def test_optimizers_that_are_not_known_are_left() -> None:
    class OfSomeone(torch.optim.Adam):
        pass

    parameter = torch.zeros(1, requires_grad=True)
    optimizer = OfSomeone([parameter])
    parameter.grad = torch.tensor([1e-33])
    optimizer.step()
    settle(optimizer)
    assert optimizer.state[parameter]["exp_avg"] != 0


@pytest.mark.parametrize("compile", [False, "auto"])
def test_a_skipped_step_does_not_put_it_off(compile: Any) -> None:
    settlings: list[int] = []
    progresses: list[int] = []

    def counted(moments: Any) -> dict[str, Tensor]:
        settlings.append(progresses[-1] + 1 if progresses else 1)
        return settled(moments)

    def hundredth_fails() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(number == SETTLED_EVERY, torch.nan, z))

    def follow(progress: Any) -> None:
        progresses.append(progress.step)
        number.fill_(progress.step + 1)

    number = torch.tensor(1)
    with patch.object(moments_module, "settled", counted), patch.object(flat, "settled", counted):
        fit(
            hundredth_fails,
            "normal",
            steps=SETTLED_EVERY,
            tol=None,
            seed=0,
            optimizer=torch.optim.Adam,
            on_nan="skip",
            compile=compile,
            callbacks=[follow],
            progress=False,
        )
    assert set(settlings) == {SETTLED_EVERY}


def test_half_precision_and_what_is_not_known_are_left() -> None:
    half = torch.full((2,), 1e-4, dtype=torch.float16)
    assert settled({"exp_avg": half}) == {}
    assert settled({"momentum_buffer": None, "square_avg": torch.zeros(2)}) == {}
