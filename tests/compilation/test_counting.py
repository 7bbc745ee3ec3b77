"""Numbers that a program keeps between calls are no part of a captured step, and it is said so."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import fit

CALLS = {"model": 0}
X = torch.linspace(-1.0, 1.0, 20)


def observe(x: Tensor, width: float) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, width))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


class Switching:
    """Changes its prior only long after the capture."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> None:
        self.calls += 1
        observe(x, 1.0 if self.calls < 2_000 else 100.0)


def counting_globally(x: Tensor) -> None:
    CALLS["model"] += 1
    observe(x, 1.0 if CALLS["model"] < 2_000 else 100.0)


def counting_in_a_helper(x: Tensor) -> None:
    counting_globally(x)


def counting_in_a_closure() -> Any:
    calls = 0

    def model(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        observe(x, 1.0 if calls < 2_000 else 100.0)

    return model


def plain(x: Tensor) -> None:
    observe(x, 1.0)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Switching(), "self.calls"),
        (counting_globally, "CALLS['model']"),
        (counting_in_a_helper, "CALLS['model']"),
        (counting_in_a_closure(), "calls"),
    ],
)
def test_a_counter_is_named(model: Any, name: str) -> None:
    execution = fit(model, "normal", X, steps=150, progress=False).execution
    assert execution.mode == "eager" and f"'{name}'" in execution.reason


def test_numbers_that_stay_are_no_matter() -> None:
    assert fit(plain, "normal", X, steps=150, progress=False).execution.mode == "captured"
