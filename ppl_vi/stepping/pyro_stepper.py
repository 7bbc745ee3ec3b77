"""Pyro's optimizers behind the interface of a fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pyro
from pyro.infer.util import zero_grads
from pyro.optim import PyroLRScheduler, PyroOptim
from pyro.optim.optim import _load_state_dict
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_vi.checkpoints import State
from ppl_vi.stepping.moments import bring_back, in_words, saved, settle, slow_down


class PyroStepper:
    """A Pyro optimizer, which keeps one of torch's for each parameter."""

    def __init__(self, optimizer: PyroOptim) -> None:
        # Pyro's keep momenta and rates by tensor; a module's tensors come back in the next fit.
        self._optimizer = copy.copy(optimizer)
        self._optimizer.optim_objs, self._optimizer.grad_clip = {}, {}

    def zero_grad(self, parameters: Mapping[str, Tensor]) -> None:
        zero_grads(parameters.values())

    def step(self, parameters: Mapping[str, Tensor], loss: float) -> None:
        self._optimizer(parameters.values())
        if isinstance(self._optimizer, PyroLRScheduler):
            plateau = self._optimizer.pt_scheduler_constructor is ReduceLROnPlateau
            self._optimizer.step(loss) if plateau else self._optimizer.step()

    def state(self) -> State:
        live = set(_named().values())  # averages in the store are other tensors after each step
        made = self._optimizer.optim_objs
        self._optimizer.optim_objs = {p: one for p, one in made.items() if p in live}
        return self._optimizer.get_state()

    def go_on(self, state: State, parameters: Mapping[str, Tensor]) -> None:
        self._optimizer.optim_objs, self._optimizer.grad_clip = {}, {}
        named = _named()
        for name, own in state.items():
            parameter = named[name]
            made = self._optimizer.optim_objs[parameter] = self._optimizer._get_optim(parameter)
            self._optimizer.grad_clip[parameter] = self._optimizer._get_grad_clip(parameter)
            _load_state_dict(made, own)

    @property
    def words(self) -> str:
        arguments = self._optimizer.pt_optim_args
        return in_words(self._optimizer.pt_optim_constructor, arguments)

    def saved(self, parameters: Mapping[str, Tensor]) -> State:
        return saved(parameters, self._optimizer_of)

    def bring_back(self, state: State, parameters: Mapping[str, Tensor]) -> None:
        bring_back(state, parameters, self._optimizer_of)

    def _optimizer_of(self, parameter: Tensor) -> Optimizer | None:
        made = self._optimizer.optim_objs.get(parameter)
        optimizer: Optimizer | None = getattr(made, "optimizer", made)
        return optimizer

    def settle(self) -> None:
        for made in self._optimizer.optim_objs.values():
            settle(getattr(made, "optimizer", made))

    def slow_down(self, factor: float) -> None:
        for made in self._optimizer.optim_objs.values():
            slow_down(made, factor)


def _named() -> dict[str, Tensor]:
    return dict(pyro.get_param_store().named_parameters())
