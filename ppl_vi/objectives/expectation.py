"""The expectation of any function of the guide's values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.drawing import draw_with
from ppl_vi.estimators import Estimators
from ppl_vi.objectives.elbo import MeanObjective
from ppl_vi.planning import Plan
from ppl_vi.preparation import prepare
from ppl_vi.program import Pair, only_expectation, valued
from ppl_vi.states import States, states_of
from ppl_vi.surrogate import surrogate

_PROGRAMS: dict[int, dict[Any, Callable[..., Any]]] = {}


@dataclass(frozen=True, eq=False)
class Expectation(MeanObjective):
    """E_q[f_λ(z)], the mean of a function of the guide's values; maximised, with both gradients:

        d/dλ E_q[f_λ(z)] = E_q[d f_λ(z)/dλ] + the gradient through the draws,

    the second by each site's estimator. The model has no part in it.

    Args:
        f: called with the values of the sites that its arguments name, as in ``lambda z: -z**2``, or
            with a dict of all values by site if they name none. Values have the shape
            ``[*plates, *event]`` that they have in the guide; a result of a plate's size in the
            plate's dimension counts as one value per element, any other is summed. It may use
            ``pyro.param``.
        num_particles: S, draws from the guide in each estimate.
        estimators: one estimator for every site, a dict by site, or ``"auto"``.

    Raises:
        ValueError: ``num_particles`` is not a positive integer.
        TypeError: f is not callable.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from ppl_vi import DisARM, Expectation
        >>> def guide():
        ...     pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))
        >>> toy = Expectation(lambda b: (b - 0.45) ** 2, num_particles=2, estimators=DisARM())
        >>> value = toy.loss_and_grads(guide, guide)

    Source: Mohamed et al. (2020) for the estimators of such gradients.
    """

    takes_kl_weights = False

    f: Callable[..., Tensor]
    num_particles: int = 8
    estimators: Estimators = "auto"

    def __post_init__(self) -> None:
        check_count("num_particles", self.num_particles)
        if not callable(self.f):
            raise TypeError(f"f must be a function of the guide's values, not {self.f!r}.")

    def plan(self, pair: Pair) -> Plan:
        return prepare(self, self._valued(pair))

    def states(self, pair: Pair) -> States:
        return super().states(self._valued(pair))

    def estimate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        pair = self._valued(pair)
        plan = prepare(self, pair)
        states = states_of(self, pair, plan.structure, plan.estimators)
        made = only_expectation(draw_with(plan, pair))
        return surrogate(self, made, plan, states, (pair.args, pair.kwargs))

    def _valued(self, pair: Pair) -> Pair:
        """The pair with f in the place of the model; the same program for the same guide."""
        if id(self) not in _PROGRAMS:
            _PROGRAMS[id(self)] = {}
            weakref.finalize(self, _PROGRAMS.pop, id(self), None)
        owner = getattr(pair.guide, "__self__", pair.guide)
        key = id(owner), getattr(pair.guide, "__func__", None)
        programs = _PROGRAMS[id(self)]
        if key not in programs:
            programs[key] = valued(pair.guide, self.f)
        return pair._replace(model=programs[key])
