"""The state of torch's optimizers: copied, brought back, made slower."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ppl_vi.checkpoints import State

_RATES = ("lr", "initial_lr", "eta")


def saved(
    parameters: Mapping[str, Tensor], optimizer_of: Callable[[Tensor], Optimizer | None]
) -> State:
    """Parameters and the optimizers' moments of each, by name; hyperparameters are left out.

    Args:
        parameters: by name.
        optimizer_of: the optimizer that moves a parameter, if there is one yet.
    """
    found = {name: optimizer_of(parameter) for name, parameter in parameters.items()}
    own = {n: each.state.get(parameters[n], {}) for n, each in found.items() if each is not None}
    return {
        "values": {name: parameter.detach().clone() for name, parameter in parameters.items()},
        "moments": {name: copy.deepcopy(dict(state)) for name, state in own.items()},
    }


def bring_back(
    state: State,
    parameters: Mapping[str, Tensor],
    optimizer_of: Callable[[Tensor], Optimizer | None],
) -> None:
    """Lay back what ``saved`` gave; learning rates and other hyperparameters stay as they are."""
    lay_into(parameters, state["values"])
    for name, parameter in parameters.items():
        optimizer = optimizer_of(parameter)
        if optimizer is not None:
            optimizer.state.pop(parameter, None)
            if moments := state["moments"].get(name):
                optimizer.state[parameter] = {n: _at(parameter, n, v) for n, v in moments.items()}


@torch.no_grad()
def lay_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    for name, value in values.items():
        if name in parameters:
            parameters[name].copy_(value)


def _at(parameter: Tensor, name: str, value: Any) -> Any:
    """A copy where the optimizer expects it: beside the parameter, but for a count of steps."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    return value.clone() if name == "step" else value.to(parameter.device, copy=True)


def slow_down(made: Optimizer | LRScheduler, factor: float) -> None:
    """Multiply the learning rates of an optimizer, and those that a scheduler around it will set."""
    optimizer: Any = getattr(made, "optimizer", made)
    for group in optimizer.param_groups:
        for rate in _RATES:
            if rate in group:
                group[rate] = group[rate] * factor
    _slow_schedule(made, factor)


def _slow_schedule(made: Any, factor: float) -> None:
    for name in ("base_lrs", "min_lrs", "max_lrs"):
        if hasattr(made, name):
            setattr(made, name, [rate * factor for rate in getattr(made, name)])
    for inner in getattr(made, "_schedulers", ()):
        _slow_schedule(inner, factor)


def in_words(*parts: Any) -> str:
    """What was chosen: names and numbers, without addresses in memory."""
    named = (part.__name__ if isinstance(part, type) else repr(part) for part in parts)
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(named))
