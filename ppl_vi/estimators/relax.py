"""A learned control variate of a relaxed draw."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Baseline, Estimator, usual
from ppl_vi.estimators.baselines import MovingAverage
from ppl_vi.estimators.draws import Draws
from ppl_vi.estimators.grid import Place
from ppl_vi.estimators.neural_baseline import Learner, learner_of
from ppl_vi.estimators.score_function import check_baseline, detached_draw
from ppl_vi.program import Site

_FAMILIES = ("Bernoulli", "Categorical")
_HIDDEN = 32


@dataclass(frozen=True, repr=False, eq=False)
class Relax(Estimator):
    """Subtract a learned function c of a relaxed draw, and add its own gradient back:

        (f(b) - c(z')) · d log q(b)/dλ + d/dλ c(z) - d/dλ c(z'),

    with z a relaxed draw (logistic or Gumbel noise added to the logits, through a sigmoid or softmax
    at a temperature), b the draw that z rounds to, and z' drawn from z given b. Unbiased for every c;
    c and the temperature are trained on the square of this gradient, taken in the logits.

    Args:
        network: c, from ``[..., inputs]`` to ``[..., 1]``, where the inputs are the relaxed values
            and the logits of one event (K of each for a Categorical with K values); ``None`` for a
            small network. Copied: each fit trains its own.
        baseline: subtracted from f before c is.
        temperature: of the relaxation, where it starts.
        rate: Adam's learning rate for the network and the temperature.

    Raises:
        GuideError: the site is neither Bernoulli nor Categorical, or the bound is not a mean of
            log-weights.
        ValueError: the temperature or the rate is not positive.

    Example:
        >>> from ppl_vi import ELBO, Relax
        >>> objective = ELBO(num_particles=4, estimators={"z": Relax()})

    Source: Grathwohl et al. (2018); Tucker et al. (2017), for the relaxed pairs and the temperature.
    """

    network: nn.Module | None = None
    baseline: Baseline | None = field(default_factory=MovingAverage)
    temperature: float = 0.5
    rate: float = 1e-3
    uses_credit: ClassVar[bool] = True
    linear_only: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("temperature", "rate"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, not {value!r}.")

    @property
    def subtracted(self) -> Baseline | None:
        return self.baseline

    def check(self, site: Site, num_particles: int) -> None:
        if site.distribution not in _FAMILIES:
            raise GuideError(
                f"site '{site.name}': Relax relaxes Bernoulli or Categorical draws, not those of "
                f"{site.distribution}. Use {usual(site)} for this site."
            )
        check_baseline(site, self.baseline, num_particles)

    def init(self, site: Site) -> nn.Module:
        entries = site.elements * (1 if site.distribution == "Bernoulli" else site.support_size)
        network = copy.deepcopy(self.network)
        if network is None:
            network = nn.Sequential(
                nn.Linear(2 * entries, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, 1)
            ).to(site.dtype if site.dtype.is_floating_point else torch.get_default_dtype())
        return Learner(_Control(network, self.temperature), self.rate)

    def draw(self, distribution: Any, place: Place) -> Tensor:
        return detached_draw(distribution)

    def term(self, draws: Draws, credit: Tensor, state: nn.Module | None) -> Tensor:
        learner = learner_of(state).to(credit.device)
        logits = draws.logits()
        num_particles = credit.shape[0]
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            gradient = _gradient(learner.module, leaf, draws, num_particles * credit)
            if logits.requires_grad:
                learner.improve(_flat(gradient.square(), credit.dim()).sum(-1).mean())
        return (gradient.detach() * logits).sum() / num_particles


def _gradient(control: nn.Module, logits: Tensor, draws: Draws, f: Tensor) -> Tensor:
    """``[..., *event, ...]``, the estimate of d E[f] / d logits of each draw."""
    lead = f.dim()
    relax: Callable[[Tensor], Tensor]
    log_q: torch.distributions.Distribution
    if isinstance(draws.family, torch.distributions.Bernoulli):
        log_q = torch.distributions.Bernoulli(logits=logits, validate_args=False)
        free, given = _logistic(logits, draws.value)
        relax = torch.sigmoid
    else:
        log_q = torch.distributions.Categorical(logits=logits, validate_args=False)
        free, given = _gumbel(logits, draws.value)
        relax = _softmax
    log_prob: Tensor = log_q.log_prob(draws.value)  # type: ignore[no-untyped-call]
    (score,) = torch.autograd.grad(log_prob.sum(), logits, retain_graph=True)
    known = _flat(logits.detach(), lead)
    at_free, at_given = (control(relax, z, known, lead) for z in (free, given))
    (path,) = torch.autograd.grad((at_free - at_given).sum(), logits, create_graph=True)
    left = (f - at_given).reshape(*at_given.shape, *(1,) * (logits.dim() - lead))
    gradient: Tensor = left * score + path
    return gradient


def _logistic(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """A relaxed draw that rounds to the value, as a function of the logits without and given it."""
    v = torch.rand_like(logits)
    one, zero = logits.sigmoid(), (-logits).sigmoid()
    u = torch.where(value > 0.5, zero + v * one, v * zero)
    tiny = torch.finfo(u.dtype).eps
    u = u.clamp(tiny, 1 - tiny)
    # The same noise in both: z and z' are then equal, and their difference is less noisy.
    return logits + u.detach().logit(), logits + u.logit()


def _gumbel(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Relaxed scores whose largest is at the value, as functions of the logits without and given it."""
    log_p = logits.log_softmax(-1)
    smallest = torch.finfo(logits.dtype).tiny
    log_e = torch.empty_like(logits).exponential_().clamp(min=smallest).log()
    chosen = one_hot(value, logits.shape[-1]).bool()
    # The largest of Gumbels at log p is a standard Gumbel; the others stay below it.
    largest = log_e.gather(-1, value.unsqueeze(-1)).expand_as(log_e)
    given = -torch.where(chosen, largest, torch.logaddexp(log_e - log_p, largest))
    return log_p + (given - log_p).detach(), given


def _flat(tensor: Tensor, lead: int) -> Tensor:
    """Everything right of the leading dimensions in one."""
    return tensor.reshape(*tensor.shape[:lead], -1)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


class _Control(nn.Module):
    """c: a network of the relaxed values, at a learned temperature, and the logits."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    def forward(
        self, relax: Callable[[Tensor], Tensor], scores: Tensor, known: Tensor, lead: int
    ) -> Tensor:
        values = relax(scores / self.log_temperature.exp())
        inputs = torch.cat([_flat(values, lead), known], -1)
        dtype = next((p.dtype for p in self.network.parameters()), inputs.dtype)
        found: Tensor = self.network(inputs.to(dtype))
        return found.squeeze(-1).to(inputs.dtype)
