"""Baselines for score-function credit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Baseline, Given
from ppl_vi.program import Site, innermost


@dataclass(frozen=True, repr=False)
class LeaveOneOut(Baseline):
    """The mean of the other particles: b_s = (Σ_t f_t - f_s) / (S - 1).

    Unbiased, since particles are independent. Also called RLOO for the ELBO and, as the log-weight
    that a particle's own is compared with, VIMCO for importance-weighted bounds.

    Raises:
        GuideError: there is only one particle.

    Example:
        >>> import torch
        >>> LeaveOneOut()(torch.tensor([1.0, 2.0, 6.0]))
        tensor([4.0000, 3.5000, 1.5000])

    Source: Salimans and Knowles (2014); Kool, van Hoof and Welling (2019); Mnih and Rezende (2016).
    """

    def check(self, site: Site, num_particles: int) -> None:
        if num_particles < 2:
            raise GuideError(
                f"site '{site.name}': LeaveOneOut compares particles, and there is only one. Set "
                f"num_particles to 2 or more."
            )

    def __call__(self, downstream: Tensor, given: Given | None = None) -> Tensor:
        # Sums of the particles before and after: the sum of all less one's own has no infinity left.
        none = torch.zeros_like(downstream[:1])
        before = torch.cat([none, downstream[:-1]]).cumsum(0)
        after = torch.cat([downstream[1:], none]).flip(0).cumsum(0).flip(0)
        return (before + after) / (downstream.shape[0] - 1)


@dataclass(frozen=True, repr=False)
class MovingAverage(Baseline):
    """An exponentially weighted mean of the log-weights of earlier steps, one number for the site.

        b = m_t / (1 - γ^t),  m_{t+1} = γ m_t + (1 - γ) mean(f_t),  b = 0 in the first step.

    Unbiased, since earlier steps know nothing of this step's draws. The mean is taken over particles
    and plates, so that batches may differ in size.

    Args:
        decay: γ, between 0 and 1.

    Raises:
        ValueError: the decay is not between 0 and 1.

    Example:
        >>> from ppl_vi import ELBO, MovingAverage, ScoreFunction
        >>> objective = ELBO(num_particles=1, estimators={"z": ScoreFunction(MovingAverage(0.95))})

    Source: Williams (1992); Mnih and Gregor (2014).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be between 0 and 1, not {self.decay!r}.")

    def init(self, site: Site) -> nn.Module:
        return Averages(1)

    def __call__(self, downstream: Tensor, given: Given | None = None) -> Tensor:
        averages = averages_of(given)
        steps = averages.steps.clamp(min=1)
        mean = averages.totals[0] / (1 - self.decay**steps)
        return mean.to(downstream).expand_as(downstream)

    def update(self, downstream: Tensor, given: Given) -> None:
        averages_of(given).follow(self.decay, downstream.mean())


@dataclass(frozen=True, repr=False)
class ControlVariate(Baseline):
    """The score itself as control variate, with its fitted coefficient: b = E[f |s|²] / E[|s|²].

    With s the score of a draw in its distribution's own parameters, this is the constant b that
    leaves the least total variance of (f - b) s. It is fitted on the *other* particles or, with one
    particle, on earlier steps: fitted on the same draws it would be biased.

    Args:
        decay: of the averages over earlier steps, between 0 and 1; used with one particle.

    Raises:
        ValueError: the decay is not between 0 and 1.

    Example:
        >>> from ppl_vi import ELBO, ControlVariate, ScoreFunction
        >>> objective = ELBO(num_particles=8, estimators={"z": ScoreFunction(ControlVariate())})

    Source: Ranganath, Gerrish and Blei (2014), section 3.2.
    """

    decay: float = 0.9
    needs_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be between 0 and 1, not {self.decay!r}.")

    def init(self, site: Site) -> nn.Module:
        return Averages(2)

    def __call__(self, downstream: Tensor, given: Given | None = None) -> Tensor:
        if downstream.shape[0] == 1:
            totals = averages_of(given).totals
            coefficient = torch.where(totals[1] > 0, totals[0] / totals[1], totals[0])
            return coefficient.to(downstream).expand_as(downstream)
        weight = _squared_score(given, downstream)
        weighted = weight * downstream
        others = weight.sum(0, keepdim=True) - weight
        total = weighted.sum(0, keepdim=True) - weighted
        return torch.where(others > 0, total / others, torch.zeros_like(total))

    def update(self, downstream: Tensor, given: Given) -> None:
        weight = _squared_score(given, downstream)
        averages_of(given).follow(self.decay, (weight * downstream).mean(), weight.mean())


class Averages(nn.Module):
    """Exponentially weighted sums over steps."""

    totals: Tensor
    steps: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("totals", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def follow(self, decay: float, *values: Tensor) -> None:
        """Let the sums decay and add this step's values, unless one is not finite."""
        new = torch.stack([value.double().to(self.totals.device) for value in values])
        known = torch.isfinite(new).all()
        followed = decay * self.totals + (1 - decay) * new
        self.totals.copy_(torch.where(known, followed, self.totals))
        self.steps.add_(known)


def averages_of(given: Given | None) -> Averages:
    """The averages in a baseline's state.

    Raises:
        TypeError: the baseline was called without its state.
    """
    state = None if given is None else given.state
    if not isinstance(state, Averages):
        raise TypeError("this baseline looks at earlier steps: call it with its state.")
    return state


def _squared_score(given: Given | None, downstream: Tensor) -> Tensor:
    """``[num_particles, states, *plates]``, |d log q / d parameters|² of each draw.

    One for all where the parameters are shared by the particles or not trained.
    """
    batched = None if given is None else given.draws.latent.batched
    if given is None or batched is None:
        return torch.ones_like(downstream)
    distribution = batched.distribution
    batch, base = distribution.batch_shape, innermost(distribution)
    own = (vars(base).get(name) for name in base.arg_constraints)
    parameters = [p for p in own if p is not None and p.requires_grad and p.shape[:1] == batch[:1]]
    if not parameters:
        return torch.ones_like(downstream)
    with torch.enable_grad():
        total = distribution.log_prob(batched.value).sum()
        scores = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    norms = [s.square().reshape(*batch, -1).sum(-1) for s in scores if s is not None]
    if not norms:  # a loss without gradient
        return torch.ones_like(downstream)
    squared = given.draws.select(batched.place(torch.stack(norms).sum(0)))[:, 0]
    # Where credit is summed over a plate, so is the score.
    gone = [i for i, size in enumerate(downstream.shape) if size == 1 and squared.shape[i] > 1]
    return squared.sum(gone, keepdim=True) if gone else squared
