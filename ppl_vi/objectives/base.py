"""What an objective is, and how it runs inside Pyro."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from ppl_vi.estimators import Estimators
from ppl_vi.preparation import Prepared, prepare
from ppl_vi.program import Pair, Run, run
from ppl_vi.surrogate import surrogate


class Objective(pyro.infer.ELBO, ABC):
    """A bound on the log evidence, estimated from particles; maximised.

    Objectives are immutable and hold nothing about a model. They are ``pyro.infer.ELBO`` objects, so
    they also run in ``pyro.infer.SVI(model, guide, optimizer, loss=objective)``.
    """

    num_particles: int
    estimators: Estimators

    @abstractmethod
    def bound(self, log_w: Tensor) -> Tensor:
        """The bound, a scalar, from log-weights ``[num_particles]``."""

    @abstractmethod
    def drop(self, log_w: Tensor, new: Tensor) -> Tensor:
        """How much the bound falls when one particle's log-weight becomes its ``new`` one.

        Args:
            log_w: ``[num_particles, ...]``.
            new: the same shape; each entry is taken alone, the other particles left as they are.
        """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("ppl_vi objectives run whole batches of particles, not traces.")

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Minus the bound, estimated once; no gradient."""
        with torch.no_grad():
            bound, _ = self._surrogate(Pair(model, guide, args, kwargs))
        return -bound.item()

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound as a scalar tensor; its gradient is the estimators'."""
        bound, total = self._surrogate(Pair(model, guide, args, kwargs))
        return total.detach() - bound - total

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Minus the bound; its gradient is added to the ``grad`` of every parameter."""
        bound, total = self._surrogate(Pair(model, guide, args, kwargs))
        if total.requires_grad:
            (-total).backward()
        return -bound.item()

    def _surrogate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        prepared = prepare(self, pair)
        return surrogate(self, self.run(prepared, pair), prepared.estimators, prepared.dependencies)

    def run(self, prepared: Prepared, pair: Pair) -> Run:
        """Draw the particles of one estimate, each site by its estimator."""
        estimators = prepared.estimators

        def draw(name: str, distribution: Any) -> Tensor:
            return estimators[name].draw(distribution)

        return run(prepared.structure, pair, draw, self.num_particles)


def check_num_particles(num_particles: Any) -> None:
    """Raise a ValueError unless ``num_particles`` is a positive integer."""
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(f"num_particles must be a positive integer, not {num_particles!r}.")
