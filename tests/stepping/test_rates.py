"""The default rate moves as torch's own schedules do, whether step by step or a block at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from ppl_vi.stepping.optimization import TorchStepper
from ppl_vi.stepping.rates import GeometricRate, StagedRate

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")


def adam() -> torch.optim.Adam:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (0.05, 0.3)]
    return torch.optim.Adam(groups)


def falling(optimizer: torch.optim.Optimizer) -> StagedRate:
    rate = StagedRate(optimizer)
    rate.become(0.02)
    rate.fall(1e-5, 700)
    return rate


def lasting(optimizer: torch.optim.Optimizer) -> GeometricRate:
    return GeometricRate(optimizer, 0.997)


def now(schedule: LRScheduler) -> list[float]:
    return [group["lr"] for group in schedule.optimizer.param_groups]


def test_it_is_torchs_exponential_one() -> None:
    ours, torchs = lasting(adam()), ExponentialLR(adam(), 0.997)
    for _ in range(50):
        assert now(ours) == now(torchs)
        ours.step()
        torchs.step()


@pytest.mark.parametrize("make", [StagedRate, falling, lasting])
def test_a_block_of_steps_is_those_steps(make: Callable[[Any], GeometricRate]) -> None:
    one, block = make(adam()), make(adam())
    ahead = block.ahead(20)
    assert now(block) == now(make(adam()))  # looking ahead moves nothing
    for number in range(20):
        assert ahead[number].tolist() == now(one)
        one.step()
    block.follow(20)
    assert block.state_dict() == one.state_dict()
    assert now(block) == now(one)


@pytest.mark.parametrize("taken", [0, 7, 20])
@pytest.mark.parametrize("make", [falling, lasting, lambda adam: ExponentialLR(adam, 0.9)])
def test_a_fit_follows_as_far_as_it_came(make: Callable[[Any], LRScheduler], taken: int) -> None:
    schedule, alone = make(adam()), make(adam())
    stepper = TorchStepper(schedule, {})
    assert stepper.rates(20).shape == (20, 2)
    stepper.use_rates(taken)
    for _ in range(taken):
        alone.step()
    assert now(schedule) == now(alone)
    assert schedule.last_epoch == alone.last_epoch


def test_a_rate_without_a_schedule_stays() -> None:
    stepper = TorchStepper(adam(), {})
    assert stepper.rates(3).tolist() == [[0.05, 0.3]] * 3
    stepper.use_rates(3)
    assert stepper.now() == [0.05, 0.3]
