"""A hierarchical guide: a Gaussian whose place and width depend on a latent of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn.module import PyroParam
from torch import Tensor, nn

from ppl_vi.guides.joint import JointGuide, SampledNormal
from ppl_vi.guides.mixture import check_counts
from ppl_vi.guides.networks import called_with, flat_weights, perceptron
from ppl_vi.registry import autoguide_builder, register_guide
from ppl_vi.starts import GuideStart

_HIDDEN = (32, 32)
_START, _CORRELATION = 0.01, 0.7


class AuxiliaryGuide(JointGuide):
    """A Gaussian given an auxiliary variable that the model does not have.

    q(e, a) = Normal(a; 0, I) Normal(e; m(a), L(a) L(a)^T),  u = location + factor e

    with L(a) = diag(s(a)) R, small networks m and s, and a unit lower triangular R. The density of e
    alone is not known; a learned reverse model r(a | e) = Normal(m'(e), diag(s'(e))²) stands in for
    q(a | e) in the bound

    E_q[log p(x, z) + log r(a | e) - log q(e, a)] = ELBO - E_q KL(q(a | e) || r(a | e)) <= ELBO

    so that ``result.elbo`` is a lower bound on the guide's own ELBO. All means start linear, with a
    correlation of 0.7 between e and a, where e is Normal(0, I) and r is exact. It bends and widens a
    Gaussian; of modes that lie apart it keeps to one, for which see ``MixtureGuide`` and ``FlowGuide``.

    Args:
        model: a Pyro model.
        num_auxiliary: how many numbers a has; by default as many as e.
        hidden: sizes of the networks' hidden layers.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Raises:
        ValueError: a number is not a positive integer.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x**2, 0.3))
        >>> result = fit(model, "auxiliary", steps=100, progress=False)
        >>> result.sample(3)["y"].shape
        torch.Size([3])

    Source: Ranganath, Tran and Blei (2016), Hierarchical variational models; Maaløe et al. (2016).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_auxiliary: int | None = None,
        hidden: tuple[int, ...] = _HIDDEN,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if num_auxiliary is not None:
            check_counts(num_auxiliary=num_auxiliary)
        super().__init__(model, create_plates=create_plates)
        self.num_auxiliary, self.hidden = num_auxiliary, tuple(hidden)

    def _set_up(self, dim: int, start: GuideStart) -> None:
        size = self.num_auxiliary or dim
        forward = _Conditional(size, dim, self.hidden).to(self.location)
        reverse = _Conditional(dim, size, self.hidden).to(self.location)
        self._networks = forward, reverse  # in a tuple: their own weights are not the guide's
        self.forward_weights, self.reverse_weights = flat_weights(forward), flat_weights(reverse)
        self.unit_tril = PyroParam(
            torch.eye(dim).to(self.location), constraints.unit_lower_cholesky
        )
        self.register_buffer("identity", torch.eye(size).to(self.location))

    def distribution(self) -> TorchDistribution:
        raise NotImplementedError(
            "the density of an auxiliary-variable guide is not known, only a bound on it. Use the "
            "guide 'flow' or 'mixture' where the density is needed."
        )

    def _auxiliary_prior(self) -> TorchDistribution:
        return SampledNormal(torch.zeros_like(self.identity[0]), scale_tril=self.identity)

    def _given(self, a: Tensor) -> TorchDistribution:
        loc, scale = called_with(self._networks[0], self.forward_weights, a)
        return SampledNormal(loc, scale_tril=scale.unsqueeze(-1) * self.unit_tril)

    def _draw_vector(self) -> Tensor:
        a = self._auxiliary("auxiliary", self._auxiliary_prior())
        e = self._auxiliary("latent", self._given(a))
        loc, scale = called_with(self._networks[1], self.reverse_weights, e)
        reverse = dist.Normal(loc, scale).to_event(1)
        return self._auxiliary("reverse", dist.Delta(e, -reverse.log_prob(a), event_dim=1))

    def _draws(self, count: int) -> Tensor:
        draws: Tensor = self._given(self._auxiliary_prior().sample((count,))).sample()
        return draws


class _Conditional(nn.Module):
    """The mean and the standard deviations of a Normal vector given another one."""

    unit: Tensor

    def __init__(self, size: int, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(size, dim)
        self.bent = perceptron((size, *hidden, 2 * dim), _START)
        same = torch.eye(dim, size)
        with torch.no_grad():
            self.linear.weight.copy_(_CORRELATION * same)
            self.linear.bias.zero_()
        self.register_buffer("unit", (1 - _CORRELATION**2 * same.sum(-1)).sqrt())

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., dim]`` each, of ``[..., size]``."""
        shift, log_scale = self.bent(given).chunk(2, -1)
        return self.linear(given) + shift, self.unit * log_scale.exp()


register_guide("auxiliary", autoguide_builder(AuxiliaryGuide))
