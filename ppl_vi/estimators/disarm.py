"""Antithetic pairs of discrete draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator, usual
from ppl_vi.estimators.draws import Draws, finite_logits
from ppl_vi.estimators.grid import Place
from ppl_vi.program import Site, innermost

_FAMILIES = ("Bernoulli", "Categorical")


@dataclass(frozen=True, repr=False)
class DisARM(Estimator):
    """Draw particles in antithetic pairs and weigh their logits by what the pair leaves open.

    A Bernoulli draw is z = 1[u < σ(α)] with u uniform, and d/dα E[f(z)] = E[f(z) (1 - 2u)]. The
    second particle of a pair uses 1 - u, and 1 - 2u is replaced by its mean g given both draws:

        d/dα E[f] = E[½ (f(z) g - f(z') g)],  with g = 1 - (low + high),

    where (low, high) is the range of u that gives this pair. For equal logits g is 0 where z = z',
    else ± σ(|α|). The formula holds for unequal logits too, where the pair differs upstream. A
    Categorical is a sequence of such draws: is it the first category, if not the second, and so on.

    Unbiased. Particles 2j and 2j + 1 make a pair, so that their number is even; each is a draw from
    q, but the two are not independent, so only bounds that are a mean of log-weights keep their
    value.

    Raises:
        GuideError: the site is neither Bernoulli nor Categorical, the number of particles is odd, or
            the bound is not a mean of log-weights.

    Example:
        >>> from ppl_vi import ELBO, DisARM
        >>> objective = ELBO(num_particles=2, estimators={"z": DisARM()})

    Source: Dong, Mnih and Tucker (2020); Dong, Mnih and Tucker (2021) for categories as sequences.
    """

    uses_credit: ClassVar[bool] = True
    linear_only: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True

    def check(self, site: Site, num_particles: int) -> None:
        if site.distribution not in _FAMILIES:
            raise GuideError(
                f"site '{site.name}': DisARM pairs Bernoulli or Categorical draws, not those of "
                f"{site.distribution}. Use {usual(site)} for this site."
            )
        if num_particles % 2:
            raise GuideError(
                f"site '{site.name}': DisARM draws particles in pairs, and there are "
                f"{num_particles}. Set num_particles to an even number."
            )

    def draw(self, distribution: Any, place: Place) -> Tensor:
        base = innermost(distribution)
        shape = distribution.batch_shape + distribution.event_shape
        with torch.no_grad():
            logits = _decisions(base, finite_logits(base.logits))
            logits = logits.expand(*shape, logits.shape[-1])
            num_particles = place.shape[0]
            plates = (
                logits.shape[1:] if len(logits) == num_particles else (-1,)
            )  # kept if they can be
            pairs = logits.reshape(num_particles // 2, 2, *plates)
            u = torch.rand_like(pairs[:, 0])
            taken = torch.stack([u, 1 - u], 1) < pairs.sigmoid()
            return _value_of(base, taken.reshape(logits.shape))

    def term(self, draws: Draws, credit: Tensor, state: nn.Module | None) -> Tensor:
        logits = _decisions(draws.family, draws.logits())
        with torch.no_grad():
            taken, asked = _decided(draws.family, draws.value, logits.shape[-1])
            probability = logits.sigmoid()
            # The range of each particle's own uniform: all of it where it was never asked for.
            low = torch.where(asked & ~taken, probability, 0.0)
            high = torch.where(asked & taken, probability, 1.0)
            first, second = slice(0, None, 2), slice(1, None, 2)
            lowest = torch.maximum(low[first], 1 - high[second])
            highest = torch.minimum(high[first], 1 - low[second])
            mean = 1 - (lowest + highest)
            mean = torch.stack([mean, -mean], 1).reshape(logits.shape) * asked
        score: Tensor = sum_rightmost(logits * mean, logits.dim() - credit.dim())
        return (score * credit).sum()


def _decisions(base: Any, logits: Tensor) -> Tensor:
    """``[..., decisions]``: the logit of each yes given that all before it were no."""
    if _is_bernoulli(base):
        return logits.unsqueeze(-1)
    rest = logits.flip(-1).logcumsumexp(-1).flip(-1)
    return logits[..., :-1] - rest[..., 1:]


def _value_of(base: Any, taken: Tensor) -> Tensor:
    """The draw that the decisions lead to."""
    if _is_bernoulli(base):
        return taken.squeeze(-1).to(base.logits.dtype)
    last = torch.ones_like(taken[..., :1])  # nothing else is left
    return torch.cat([taken, last], -1).int().argmax(-1)


def _decided(base: Any, value: Tensor, decisions: int) -> tuple[Tensor, Tensor]:
    """``[..., decisions]`` twice: which were taken, and which were asked for at all."""
    if _is_bernoulli(base):
        taken = value.unsqueeze(-1) > 0.5
        return taken, torch.ones_like(taken)
    order = torch.arange(decisions, device=value.device)
    return order == value.unsqueeze(-1), order <= value.unsqueeze(-1)


def _is_bernoulli(base: Any) -> bool:
    return isinstance(base, torch.distributions.Bernoulli)
