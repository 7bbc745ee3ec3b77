"""The state of torch's optimizers: copied, brought back, settled, made slower."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.nn.functional import hardshrink
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam
from torch.optim.lr_scheduler import LRScheduler

from ppl_vi.checkpoints import State

SETTLED_EVERY = 100
"""Steps; at every multiple of it, whoever takes them, so that where a run is cut changes nothing."""

_RATES = ("lr", "initial_lr", "eta")
_AVERAGES = ("exp_avg", "momentum_buffer")
_SETTLED = (Adam, AdamW, NAdam, RAdam, SGD, ClippedAdam)
"""Optimizers that divide an average by a root, or add it; others may take its sign."""
_SETTLED_KINDS = (torch.float32, torch.float64)


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


def settle(optimizer: Optimizer) -> None:
    """Make zeros of averages that have all but vanished, where the optimizer's moments are known."""
    if type(optimizer) in _SETTLED:
        for moments in optimizer.state.values():
            moments.update(settled(moments))


def settled(moments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Moments without numbers that are slow to work with, and too small to move a parameter.

    Where gradients have become zeros, as of a rectifier that died, their average falls until rounding
    holds it at the smallest numbers there are. Processors take a hundred times as long for those. Well
    above them an average becomes zero, and that of squares falls no further.

    Args:
        moments: of a parameter or of several in one tensor, by the names of torch's Adam and SGD.

    Returns:
        those of single and double precision that are settled, by name.
    """
    known = {name: moments.get(name) for name in _AVERAGES}
    found = {n: hardshrink(own, _least(own)) for n, own in known.items() if _can_be_settled(own)}
    squares = moments.get("exp_avg_sq")
    if "exp_avg" in found and _can_be_settled(squares):
        # Never zero: the average is divided by their root, and eps may be zero.
        fallen = (found["exp_avg"] == 0) & (squares > 0)
        found["exp_avg_sq"] = torch.where(fallen, squares.clamp_min(_least(squares)), squares)
    return found


def _can_be_settled(moment: Any) -> TypeGuard[Tensor]:
    return isinstance(moment, Tensor) and moment.dtype in _SETTLED_KINDS and not moment.is_sparse


def _least(moment: Tensor) -> float:
    """What stays a normal number for long, and when it is multiplied by a small rate."""
    kind = torch.finfo(moment.dtype)
    return kind.tiny / kind.eps


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
