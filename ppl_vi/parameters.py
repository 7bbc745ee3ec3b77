"""Parameters of one fit: a scope of their own while it runs, and a copy that the result owns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor


def trainable() -> dict[str, Tensor]:
    """The unconstrained parameters of the current scope that ask for a gradient, by name.

    A tensor with two names (a module that is part of two others) comes once, so as to move once.
    """
    named: dict[Tensor, str] = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        if parameter.requires_grad:
            named.setdefault(parameter, name)
    return {name: parameter for parameter, name in named.items()}


def _buffers(programs: tuple[Any, ...]) -> list[Tensor]:
    """The buffers (batch norm's statistics, say) of programs that are modules or their methods."""
    owners = [getattr(program, "__self__", program) for program in programs]
    modules = {id(owner): owner for owner in owners if isinstance(owner, torch.nn.Module)}
    return [buffer for module in modules.values() for buffer in module.buffers()]


@dataclass(frozen=True)
class FittedParameters:
    """The parameters of a fit as they were at its end.

    A module's parameters are the module's own tensors, which a later fit trains on. So the result
    keeps copies, and lays them into the live tensors only while it needs them.
    """

    scope: Mapping[str, Any]
    live: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def capture(cls, programs: tuple[Any, ...]) -> FittedParameters:
        """Copy the parameters of the current scope and the buffers of the programs."""
        scope = pyro.get_param_store().get_state()
        live = (*scope["params"].values(), *_buffers(programs))
        return cls(scope, live, tuple(tensor.detach().clone() for tensor in live))

    def including(self, tensors: Iterable[Tensor]) -> FittedParameters:
        """With more tensors, as they are now."""
        more = tuple(tensors)
        copies = tuple(tensor.detach().clone() for tensor in more)
        return FittedParameters(self.scope, (*self.live, *more), (*self.values, *copies))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block with these parameters; everything is put back after it."""
        before = tuple(tensor.detach().clone() for tensor in self.live)
        with pyro.get_param_store().scope(dict(self.scope)):
            try:
                _copy(self.values, self.live)
                yield
            finally:
                _copy(before, self.live)

    def restore(self) -> None:
        """Lay the values into the live tensors for good."""
        _copy(self.values, self.live)

    def constrained(self) -> dict[str, Tensor]:
        """The parameters by name, on their own supports, detached."""
        with self.applied():
            store = pyro.get_param_store()
            return {name: store[name].detach().clone() for name in self.scope["params"]}


def _copy(values: tuple[Tensor, ...], live: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for tensor, value in zip(live, values, strict=True):
            tensor.copy_(value)
