"""Torch's optimizers without the compiler that torch loads in order to hide them from it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_HIDDEN = ("add_param_group", "state_dict", "load_state_dict")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Make optimizers, and read or write their state, without loading torch's compiler.

    torch loads it, which takes a second, in order to hide these from it. Where it is not there, there
    is nothing to hide from.
    """
    methods: list[Any] = [
        method
        for name in _HIDDEN
        if (method := getattr(getattr(Optimizer, name), "__wrapped__", None)) is not None
        and not hasattr(method, "__dynamo_disable")
    ]
    if "torch._dynamo" in sys.modules:
        methods = []
    for method in methods:
        method.__dynamo_disable = method
    try:
        yield
    finally:
        for method in methods:
            vars(method).pop("__dynamo_disable", None)


def take_step(optimizer: Optimizer) -> None:
    """A step of the optimizer that does not load torch's compiler, if that is not there yet.

    torch loads it, which takes a second, in order to hide the step from it.
    """
    bare = None if "torch._dynamo" in sys.modules else bare_step(optimizer)
    if bare is None or optimizer.defaults.get("differentiable"):
        optimizer.step()
        return
    optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler asks for
    with torch.no_grad():
        bare(optimizer)


def bare_step(optimizer: Optimizer) -> Callable[[Optimizer], Any] | None:
    """The step that torch wrote for the optimizer, taken out of its wrappers.

    ``None`` where someone else wrote it, replaced it or listens to it.
    """
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    step: Any = type(optimizer).step
    own = vars(optimizer).get("step", step)  # a scheduler's wrapper tells what it is around
    if own is not step and getattr(own, "__wrapped__", None) is not step:
        return None
    if any((*hooks, _global_optimizer_pre_hooks, _global_optimizer_post_hooks)):
        return None
    return _unwrapped(step)


@cache
def _unwrapped(step: Any) -> Callable[[Optimizer], Any] | None:
    """The function inside torch's two wrappers; ``None`` where they are not those that are known."""
    for wrapper in ("profile_hook_step.<locals>.wrapper", "for_differentiable.<locals>._use_grad"):
        if not isinstance(step, FunctionType) or not step.__code__.co_qualname.endswith(wrapper):
            return None
        step = inspect.getclosurevars(step).nonlocals["func"]
    return step if step.__module__.startswith("torch.optim.") else None
