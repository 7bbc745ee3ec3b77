"""A fitted model that is to be fitted again, and to learn nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vi.program import HoldParameters, Pair, draw_plainly, latents_of
from ppl_vi.randomness import forked_rng


class LearnedModel:
    """A program with the learned parameters of a model held where they are.

    Args:
        program: the model, or what has come of it.
        pair: the model with its arguments, to find its parameters in the current scope.

    Attributes:
        modules: the parameters of modules, to be kept out of a fit by ``frozen``.
        held: names of the others.
    """

    def __init__(self, program: Callable[..., Any], pair: Pair) -> None:
        self._program = program
        with torch.enable_grad(), forked_rng(seed=0):
            names = latents_of(pair, draw_plainly).parameters
        store = pyro.get_param_store()
        live = dict(store.named_parameters())
        self.modules = [p for n in names if isinstance(p := live[n], torch.nn.Parameter)]
        parameters = {
            name: store[name].detach().clone()
            for name in names
            if not isinstance(live[name], torch.nn.Parameter)
        }
        self._parameters, self.held = parameters, frozenset(parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with HoldParameters(self._parameters), warnings.catch_warnings():
            # Parameters of modules are frozen in a new fit, which Pyro remarks on in each run.
            warnings.filterwarnings("ignore", ".*was not registered in the param store")
            return self._program(*args, **kwargs)


@contextmanager
def frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Keep a module's own parameters out of a fit."""
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in moving:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
