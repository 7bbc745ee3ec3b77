"""Flat updates take the steps that torch's optimizers take."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from ppl_vi.compilation.updates import update_of

STEPS = 20
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.95), eps=1e-6),
    "adam, decay": partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
    "adam, maximize": partial(torch.optim.Adam, lr=0.1, maximize=True),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.2),
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_as_torch(make: Callable[..., Any]) -> None:
    gradients = torch.randn(
        STEPS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    parameter = torch.nn.Parameter(torch.arange(5.0, dtype=torch.float64))
    optimizer = make([parameter])
    update = update_of(optimizer, optimizer.param_groups[0])
    assert update is not None
    flat = parameter.detach().clone()
    states = [torch.zeros_like(flat) for _ in update.names]
    for step, gradient in enumerate(gradients):
        rate = 0.1 / (1 + step)
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimizer.step()
        count, at = torch.tensor(float(step), dtype=torch.float64), torch.tensor(rate).double()
        flat, states = update(flat, gradient, states, count, torch.tensor(rate, dtype=at.dtype))
        torch.testing.assert_close(flat, parameter.detach(), rtol=1e-12, atol=1e-12)
    for name, state in zip(update.names, states, strict=True):
        torch.testing.assert_close(state, optimizer.state[parameter][name], rtol=1e-12, atol=1e-12)


class Halved(torch.optim.Adam):
    """A subclass may do anything."""


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adam, amsgrad=True),
        torch.optim.Adagrad,
        Halved,
        partial(torch.optim.RMSprop, lr=0.1),
    ],
)
def test_others_are_left_to_torch(make: Callable[..., Any]) -> None:
    optimizer = make([torch.nn.Parameter(torch.zeros(2))])
    assert update_of(optimizer, optimizer.param_groups[0]) is None


def test_an_optimizer_with_hooks_is_left_to_torch() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    optimizer.register_step_post_hook(lambda *_: None)
    assert update_of(optimizer, optimizer.param_groups[0]) is None
