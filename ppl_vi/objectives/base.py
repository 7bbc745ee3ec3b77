"""What an objective is, and how it runs inside Pyro."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.infer
import torch
from torch import Tensor

from ppl_vi.drawing import draw_with
from ppl_vi.estimators import Estimators
from ppl_vi.planning import Plan
from ppl_vi.preparation import prepare
from ppl_vi.program import Pair
from ppl_vi.scheduling import Scheduled
from ppl_vi.states import States, states_of
from ppl_vi.surrogate import surrogate


class Objective(pyro.infer.ELBO, ABC):
    """A bound on the log evidence, estimated from particles; maximised.

    Objectives are immutable and hold nothing about a model; what their estimators learn from step to
    step is kept beside them, and forgotten with them. They are ``pyro.infer.ELBO`` objects, so they
    also run in ``pyro.infer.SVI(model, guide, optimizer, loss=objective)``.
    """

    num_particles: int
    estimators: Estimators

    linear: ClassVar[bool] = False
    """Whether the bound is a mean of log-weights."""

    analytic: bool = False
    """Whether closed forms take the place of sampled factors."""

    takes_kl_weights: bool = False
    """Whether the gradient is right for log p and log q of latents counted by a weight."""

    scheduled: Scheduled | None = None
    """The numbers, if any, that an estimate reads and that another step finds changed."""

    @property
    def num_draws(self) -> int:
        """How many particles one estimate is made of."""
        return self.num_particles

    @abstractmethod
    def estimate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The bound and the surrogate whose gradient is the bound's: two scalars."""

    def plan(self, pair: Pair) -> Plan:
        """How the estimates on a pair are made.

        Raises:
            GuideError, ModelError, DataError: they can't be made.
        """
        return prepare(self, pair)

    def states(self, pair: Pair) -> States:
        """What the estimators have learned on a pair, by site."""
        plan = self.plan(pair)
        return states_of(self, pair, plan.structure, plan.estimators)

    def described(self, plan: Plan) -> dict[str, str]:
        """The estimator of each site, in words."""
        return {name: repr(estimator) for name, estimator in plan.estimators.items()}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("ppl_vi objectives run whole batches of particles, not traces.")

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Minus the bound, estimated once; no gradient."""
        with torch.no_grad():
            bound, _ = self.estimate(Pair(model, guide, args, kwargs))
        return -bound.item()

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound as a scalar tensor; its gradient is the estimators'."""
        bound, total = self.estimate(Pair(model, guide, args, kwargs))
        return total.detach() - bound - total

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Minus the bound; its gradient is added to the ``grad`` of every parameter."""
        bound, total = self.estimate(Pair(model, guide, args, kwargs))
        if total.requires_grad:
            (-total).backward()
        return -bound.item()


class BoundObjective(Objective, ABC):
    """An objective that is a function of log-weights; it sees no sites."""

    takes_kl_weights: bool = True

    @abstractmethod
    def bound(self, log_w: Tensor) -> Tensor:
        """The bound, ``[...]``, from log-weights ``[num_draws, ...]``."""

    @abstractmethod
    def drop(self, log_w: Tensor, new: Tensor) -> Tensor:
        """How much the bound falls when one particle's log-weight becomes its ``new`` one.

        Args:
            log_w: ``[num_draws, ...]``.
            new: broadcasts with it; each entry is taken alone, the other particles left as they are.
        """

    @abstractmethod
    def share(self, log_w: Tensor) -> Tensor:
        """``[num_draws, ...]``: the part of the bound that each particle takes part in."""

    def estimate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        plan = prepare(self, pair)
        states = states_of(self, pair, plan.structure, plan.estimators)
        return surrogate(self, draw_with(plan, pair), plan, states, (pair.args, pair.kwargs))
