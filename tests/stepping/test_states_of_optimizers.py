"""Optimizers and their schedules go on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.optim
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler as schedules

from ppl_vi.checkpoints.format import decoded, encoded
from ppl_vi.stepping.optimization import make_stepper

Factory = Callable[[], Any]


def scheduled(make: Callable[[Any], Any]) -> Factory:
    return lambda: lambda parameters: make(torch.optim.Adam(parameters, lr=0.1))


def of_pyro(name: str, **options: Any) -> Factory:
    return lambda: getattr(pyro.optim, name)({"lr": 0.1, **options})


def two_groups(parameters: list[Tensor]) -> torch.optim.Optimizer:
    first, *others = parameters
    return torch.optim.SGD(
        [{"params": [first], "momentum": 0.9}, {"params": others, "lr": 0.001}], lr=0.01
    )


CHOICES: dict[str, Factory] = {
    "default": lambda: None,
    **{
        name: lambda name=name: getattr(torch.optim, name)  # type: ignore[misc]
        for name in ("Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Adamax", "Rprop", "ASGD")
    },
    "groups": lambda: two_groups,
    "exponential": scheduled(lambda adam: schedules.ExponentialLR(adam, 0.9)),
    "one cycle": scheduled(lambda adam: schedules.OneCycleLR(adam, 0.1, total_steps=30)),
    "restarts": scheduled(lambda adam: schedules.CosineAnnealingWarmRestarts(adam, 4)),
    "milestones": scheduled(lambda adam: schedules.MultiStepLR(adam, [2, 6, 6, 8])),
    "lambda": scheduled(lambda adam: schedules.LambdaLR(adam, lambda step: 0.9**step)),
    "plateau": scheduled(lambda adam: schedules.ReduceLROnPlateau(adam, patience=1)),
    "one after the other": scheduled(
        lambda adam: schedules.SequentialLR(
            adam, [schedules.ConstantLR(adam), schedules.ExponentialLR(adam, 0.9)], [3]
        )
    ),
    "Pyro's Adam": of_pyro("Adam"),
    "Pyro's ClippedAdam": of_pyro("ClippedAdam", lrd=0.9),
    "Pyro's DCTAdam": of_pyro("DCTAdam"),
    "Pyro's AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "Pyro's schedule": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    ),
}
TARGET = torch.linspace(-1, 1, 6)


def parameters_at(values: list[Tensor]) -> dict[str, Tensor]:
    store = pyro.get_param_store()
    store.clear()
    return {
        name: pyro.param(name, value).requires_grad_()
        for name, value in zip("ab", values, strict=True)
    }


def steps(stepper: Any, parameters: dict[str, Tensor], count: int) -> None:
    for number in range(count):
        stepper.zero_grad(parameters)
        joined = torch.cat([parameter.reshape(-1) for parameter in parameters.values()])
        loss = ((joined - TARGET) ** 4).sum() + 0.1 * number % 3
        loss.backward()
        stepper.step(parameters, loss.item())


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_it_goes_on(name: str) -> None:
    with pyro.get_param_store().scope():
        parameters = parameters_at([torch.ones(2, 2), torch.zeros(2)])
        first = make_stepper(CHOICES[name](), parameters, 20)
        steps(first, parameters, 7)
        state = decoded(encoded(first.state()), "state")
        before = [parameter.detach().clone() for parameter in parameters.values()]
        steps(first, parameters, 7)
        expected = [parameter.detach().clone() for parameter in parameters.values()]
        parameters = parameters_at(before)
        second = make_stepper(CHOICES[name](), parameters, 20)
        second.go_on(state, parameters)
        steps(second, parameters, 7)
        for parameter, value in zip(parameters.values(), expected, strict=True):
            assert torch.equal(parameter, value)


def test_a_parameter_met_later_is_moved_further() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    stepper = make_stepper(torch.optim.Adam, {"a": a}, 20)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    stepper.step({"a": a, "b": b}, 0.0)
    other = make_stepper(torch.optim.Adam, {"a": a}, 20)
    other.go_on(decoded(encoded(stepper.state()), "state"), {"a": a, "b": b})
    assert torch.equal(other.optimizer.state[b]["step"], torch.tensor(1.0))  # type: ignore[attr-defined]
