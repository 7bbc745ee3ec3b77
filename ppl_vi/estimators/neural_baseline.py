"""A baseline that a network learns beside the guide."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Baseline, Given
from ppl_vi.program import Site
from ppl_vi.stepping.adam import adam


@dataclass(frozen=True, repr=False, eq=False)
class NeuralBaseline(Baseline):
    """A network that foretells the log-weight from the data: b = module(inputs).

    It is trained after every step, on the squared error of this step's log-weights, and foretells
    those of the next. Unbiased, since the inputs know nothing of the draws. The module is copied:
    each fit trains its own.

    Args:
        module: maps the inputs to ``[*plates]`` or ``[*plates, 1]``, one number for each element of
            the site's plates, or to what broadcasts against it.
        inputs: the module's input from the arguments of model and guide; by default the first of
            them, or a tensor of one 1 where there is none.
        rate: Adam's learning rate for the module.

    Raises:
        GuideError: the module's output does not fit the plates of the site.

    Example:
        >>> import torch
        >>> from ppl_vi import ELBO, NeuralBaseline, ScoreFunction
        >>> baseline = NeuralBaseline(torch.nn.Linear(784, 1))
        >>> objective = ELBO(estimators={"z": ScoreFunction(baseline)})

    Source: Mnih and Gregor (2014), section 2.3.
    """

    module: nn.Module
    inputs: Callable[..., Tensor] | None = None
    rate: float = 1e-3

    def init(self, site: Site) -> nn.Module:
        return Learner(copy.deepcopy(self.module), self.rate)

    def __call__(self, downstream: Tensor, given: Given | None = None) -> Tensor:
        with torch.no_grad():
            return self._foretold(downstream, given)

    def update(self, downstream: Tensor, given: Given) -> None:
        learner = learner_of(given.state)
        with torch.enable_grad():
            error = (self._foretold(downstream, given) - downstream.detach()).square().mean()
            learner.improve(error)

    def _foretold(self, downstream: Tensor, given: Given | None) -> Tensor:
        if given is None:
            raise TypeError("NeuralBaseline looks at the data: call it with what is given.")
        learner = learner_of(given.state).to(downstream.device)
        found: Tensor = learner.module(self._inputs(given))
        plates = downstream.shape[2:]
        if found.dim() == len(plates) + 1 and found.shape[-1] == 1:
            found = found.squeeze(-1)
        try:
            return found.expand(plates).expand_as(downstream)
        except RuntimeError as cause:
            raise GuideError(
                f"site '{given.draws.site}': NeuralBaseline gives shape {tuple(found.shape)}, but the "
                f"site's plates have {tuple(plates)}. Let the module give one number per element, and "
                f"say with inputs= what it is computed from."
            ) from cause

    def _inputs(self, given: Given) -> Any:
        if self.inputs is not None:
            return self.inputs(*given.args, **given.kwargs)
        every = [*given.args, *given.kwargs.values()]
        parameter = next(learner_of(given.state).parameters(), torch.zeros(()))
        return every[0] if every else torch.ones(1).to(parameter)


class Learner(nn.Module):
    """A module with the moments of Adam: what is trained beside the guide."""

    updates: Tensor

    def __init__(self, module: nn.Module, rate: float) -> None:
        super().__init__()
        self.module, self._rate = module, rate
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))
        for number, parameter in enumerate(module.parameters()):
            self.register_buffer(f"first_{number}", torch.zeros_like(parameter))
            self.register_buffer(f"second_{number}", torch.zeros_like(parameter))

    def improve(self, loss: Tensor) -> None:
        """One step down the loss, unless it is not finite."""
        parameters = list(self.module.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            known = torch.isfinite(loss)
            for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                if gradient is not None:
                    moments = getattr(self, f"first_{number}"), getattr(self, f"second_{number}")
                    step, *moved = adam(gradient, *moments, self.updates, self._rate)
                    new = (parameter - step, *moved)
                    for tensor, value in zip((parameter, *moments), new, strict=True):
                        tensor.copy_(torch.where(known, value, tensor))
            self.updates.add_(known)


def learner_of(state: nn.Module | None) -> Learner:
    """The learner in a state.

    Raises:
        TypeError: there is none.
    """
    if not isinstance(state, Learner):
        raise TypeError("this estimator learns from step to step: call it with its state.")
    return state
