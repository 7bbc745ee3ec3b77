"""Optimizers: torch's, Pyro's, and the default, behind one small interface."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vi.checkpoints import State
from ppl_vi.stepping.bare_steps import take_step, without_compiler
from ppl_vi.stepping.moments import bring_back, in_words, saved, settle, slow_down
from ppl_vi.stepping.pyro_stepper import PyroStepper
from ppl_vi.stepping.rates import INITIAL_RATE, GeometricRate, StagedRate, default_optimizer

OptimizerChoice = Callable[[Any], Any] | Literal["search"] | None
"""A torch optimizer class, a factory of an optimizer or a scheduler, or a Pyro optimizer."""


class Stepper(Protocol):
    """What a fit needs of an optimizer."""

    def zero_grad(self, parameters: Mapping[str, Tensor]) -> None:
        """Forget the gradients of the last step."""

    def step(self, parameters: Mapping[str, Tensor], loss: float) -> None:
        """Move the parameters along their gradients, and the schedule by one."""

    @property
    def words(self) -> str:
        """What was chosen: the kind of optimizer, its options and its schedule."""

    def state(self) -> State:
        """What it has learned, and where the schedule is, for another one to go on."""

    def go_on(self, state: State, parameters: Mapping[str, Tensor]) -> None:
        """Go on where another one was, with the parameters that it moved."""

    def saved(self, parameters: Mapping[str, Tensor]) -> State:
        """Parameters and moments, for ``bring_back``."""

    def bring_back(self, state: State, parameters: Mapping[str, Tensor]) -> None:
        """Bring parameters and moments back to where they were; the schedule goes on."""

    def settle(self) -> None:
        """Make zeros of moments that have all but vanished."""

    def slow_down(self, factor: float) -> None:
        """Multiply all learning rates, also those to come."""


def make_stepper(
    optimizer: OptimizerChoice,
    parameters: Mapping[str, Tensor],
    steps: int,
    staged: bool = False,
    rate: float = INITIAL_RATE,
) -> Stepper:
    """The stepper for ``fit(optimizer=...)``.

    Args:
        optimizer: a ``torch.optim.Optimizer`` class; a factory that takes parameters and returns an
            optimizer or a scheduler around one; a Pyro optimizer or scheduler; or ``None`` for Adam
            with a rate that falls geometrically from 0.05 to 5e-6 over the planned steps, so that
            posteriors of very different widths are all resolved.
        parameters: unconstrained, by name.
        steps: how many are planned.
        staged: whether the default rate stays where it is until it is told to fall.
        rate: the default rate of the first step.

    Raises:
        TypeError: the choice is none of these, for instance an optimizer already bound to tensors.
    """
    if isinstance(optimizer, PyroOptim):
        return PyroStepper(optimizer)
    if isinstance(optimizer, (Optimizer, LRScheduler)) or not (
        optimizer is None or callable(optimizer)
    ):
        raise TypeError(
            f"optimizer: pass a torch.optim class, a function from parameters to an optimizer or "
            f"scheduler, a Pyro optimizer or 'search'; not {type(optimizer).__name__!r} itself."
        )
    make = optimizer or (lambda tensors: default_optimizer(tensors, steps, staged, rate))
    with without_compiler():
        made = make(list(parameters.values()))
    if not isinstance(made, (Optimizer, LRScheduler)):
        raise TypeError(
            f"optimizer: the function should return a torch optimizer or scheduler, but returned "
            f"{type(made).__name__}."
        )
    if isinstance(getattr(made, "optimizer", made), torch.optim.LBFGS):
        raise TypeError(
            "optimizer: LBFGS needs a closure and a loss without noise, which a fit does not have. "
            "Use torch.optim.Adam, or leave optimizer out."
        )
    return TorchStepper(made, parameters)


def _fuse(optimizer: Optimizer) -> None:
    """Let Adam move all parameters in one pass, where the user left the way to torch.

    It is what torch does on a GPU; on a CPU its own choice is ten passes over each parameter.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        open_choice = group["foreach"] is None and group["fused"] is None
        plain = all(map(_is_plain, group["params"]))
        if open_choice and plain and not (group["capturable"] or group["differentiable"]):
            group["fused"] = True


def _is_plain(parameter: Tensor) -> bool:
    """Whether torch's kernel of one pass does right by it."""
    real = parameter.is_floating_point()
    return parameter.device.type == "cpu" and real and parameter.is_contiguous()


class TorchStepper:
    """A torch optimizer, with a scheduler around it or none.

    Attributes:
        optimizer: as the user made it.
    """

    def __init__(self, made: Optimizer | LRScheduler, parameters: Mapping[str, Tensor]) -> None:
        self._scheduler = made if isinstance(made, LRScheduler) else None
        self.optimizer: Optimizer = made.optimizer if isinstance(made, LRScheduler) else made
        _fuse(self.optimizer)
        self._known: dict[str, None] = dict.fromkeys(parameters)
        self._ahead: list[list[float]] = []
        self._before: tuple[Any, list[dict[str, Any]]] = ({}, [])

    def zero_grad(self, parameters: Mapping[str, Tensor]) -> None:
        zero_grads(parameters.values())
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if (
                    not parameter.requires_grad
                ):  # frozen meanwhile: its last gradient is not to move it
                    parameter.grad = None

    def step(self, parameters: Mapping[str, Tensor], loss: float) -> None:
        for name in parameters:
            self._meet(name, parameters)
        take_step(self.optimizer)
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss)
        elif self._scheduler is not None:
            self._scheduler.step()

    @property
    def words(self) -> str:
        scheduler = () if self._scheduler is None else (type(self._scheduler),)
        return in_words(type(self.optimizer), self.optimizer.defaults, *scheduler)

    def state(self) -> State:
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        with without_compiler():
            own = {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}
        return {"names": list(self._known), **own}

    def go_on(self, state: State, parameters: Mapping[str, Tensor]) -> None:
        for name in state["names"]:
            self._meet(name, parameters)
        with without_compiler():
            self.optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])

    def _meet(self, name: str, parameters: Mapping[str, Tensor]) -> None:
        """Move this parameter too, of a branch of the program met for the first time."""
        if name not in self._known:
            self.optimizer.add_param_group({"params": [parameters[name]]})
            self._known[name] = None

    @property
    def staged(self) -> StagedRate | None:
        """The default rate, where it waits to be told to fall."""
        return self._scheduler if isinstance(self._scheduler, StagedRate) else None

    def saved(self, parameters: Mapping[str, Tensor]) -> State:
        return saved(parameters, lambda parameter: self.optimizer)

    def bring_back(self, state: State, parameters: Mapping[str, Tensor]) -> None:
        bring_back(state, parameters, lambda parameter: self.optimizer)

    def settle(self) -> None:
        settle(self.optimizer)

    def slow_down(self, factor: float) -> None:
        slow_down(self._scheduler or self.optimizer, factor)

    @property
    def foreseeable(self) -> bool:
        """Whether the schedule moves the learning rates alone, and is known before the losses are."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            return False
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if self._scheduler is not None and any(isinstance(rate, Tensor) for rate in rates):
            return False  # it is changed in place, with no way back
        before = self.options()
        self.rates(3)
        moved = self.options()
        self.use_rates(0)
        return moved == before

    def options(self) -> list[dict[str, Any]]:
        """The hyperparameters of each group, learning rates left out."""
        left_out = ("params", "lr", "initial_lr")
        groups = self.optimizer.param_groups
        return [{n: v for n, v in group.items() if n not in left_out} for group in groups]

    def rates(self, count: int) -> Tensor:
        """The learning rates of the next ``count`` steps, ``[count, groups]``.

        The schedule runs ahead; ``use_rates`` says how far the fit has followed.
        """
        if self._scheduler is None:
            return torch.tensor([self.now()], dtype=torch.float64).expand(count, -1)
        if isinstance(self._scheduler, GeometricRate):
            return self._scheduler.ahead(count)
        self._before = copy.deepcopy(self._scheduler.state_dict()), self._groups()
        self._ahead = [self.now()]
        with warnings.catch_warnings():  # the optimizer's own step is never called
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            for _ in range(count - 1):
                self._scheduler.step()
                self._ahead.append(self.now())
        return torch.tensor(self._ahead, dtype=torch.float64)

    def use_rates(self, count: int) -> None:
        """The fit has made that many of the steps that rates were asked for."""
        if self._scheduler is None:
            return
        if isinstance(self._scheduler, GeometricRate):
            self._scheduler.follow(count)
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            if count < len(self._ahead):
                state, groups = self._before
                self._scheduler.load_state_dict(state)
                for group, options in zip(self.optimizer.param_groups, groups, strict=True):
                    group.update(options)
                for _ in range(count):
                    self._scheduler.step()
            else:
                self._scheduler.step()

    def now(self) -> list[float]:
        """The learning rate of each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _groups(self) -> list[dict[str, Any]]:
        groups = self.optimizer.param_groups
        return [{n: v for n, v in group.items() if n != "params"} for group in groups]
