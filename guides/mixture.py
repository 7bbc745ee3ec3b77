"""A mixture of Gaussians over all latents together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn.module import PyroParam
from torch import Tensor, nn

from ppl_vi.counts import check_count
from ppl_vi.guides.joint import JointGuide, SampledNormal
from ppl_vi.registry import autoguide_builder, register_guide
from ppl_vi.starts import GuideStart

_COMPONENTS, _SEARCHES = 8, 12
_SPREAD, _NARROWER = 0.5, 0.7


class MixtureGuide(JointGuide):
    """A mixture of Gaussians over all latents in unconstrained space.

    q(e) = Σ_k w_k Normal(e; loc_k, L_k L_k^T),  u = location + factor e

    It reaches posteriors with several modes, and bent ones with several components each. Draws have
    two auxiliary sites, a component k and e given k, and the density is that of the mixture:

    ELBO = Σ_k w_k E_{Normal_k}[log p(x, z) - log q(z)]

    By default the sum over components is taken exactly, so that their weights have gradients without
    noise of the choice, and each component its own pathwise draws (stratified sampling): ``fit`` then
    runs the model ``num_components`` times in each particle. With many components or a costly model,
    ``estimators={"_MixtureGuide_component": ScoreFunction()}`` draws the component instead.

    ``fit`` looks for modes from several draws of the prior and puts components on each, so that
    modes which the prior's draws lead to are not missed; others may be.

    Args:
        model: a Pyro model.
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"`` L_k, in whitened coordinates.
        num_searches: from how many places modes are searched for.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Raises:
        ValueError: a number is not a positive integer, or the covariance another word.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model(x):
        ...     root = pyro.sample("root", dist.Normal(0.0, 3.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(root**2, 1.0), obs=x)
        >>> result = fit(model, "mixture", torch.full((5,), 9.0), steps=300, seed=0, progress=False)
        >>> (result.sample()["root"] > 0).float().mean().round(decimals=1)
        tensor(0.5000)

    Source: Gershman, Hoffman and Blei (2012); Roeder, Wu and Duvenaud (2017), section 4, and
    Morningstar et al. (2021), for the sum over components.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_components: int = _COMPONENTS,
        covariance: str = "full",
        num_searches: int = _SEARCHES,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_count("num_components", num_components)
        check_count("num_searches", num_searches)
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"covariance must be 'full' or 'diagonal', not {covariance!r}.")
        super().__init__(model, create_plates=create_plates)
        self.num_components, self.covariance = num_components, covariance
        self.num_searches = num_searches

    def _set_up(self, dim: int, start: GuideStart) -> None:
        centers, roots, shares = self._modes_of_vector()
        chosen, weights = _allotted(shares, self.num_components)
        locs, roots, crowd = centers[chosen], roots[chosen], weights.div(shares[chosen])
        # Components that share a mode start apart from each other.
        apart = (crowd < 1).to(locs).unsqueeze(-1)
        step = (roots @ torch.randn_like(locs).unsqueeze(-1)).squeeze(-1)
        scales = roots.diagonal(dim1=-2, dim2=-1)
        self.means = nn.Parameter(locs + _SPREAD * apart * step)
        if len(weights) > 1:
            self.logits = nn.Parameter(weights.log())
        else:
            self.register_buffer("logits", weights.log())  # nothing to learn
        narrower = scales * (1 - (1 - _NARROWER) * apart)
        self.deviations = PyroParam(narrower, constraints.softplus_positive, event_dim=2)
        if self.covariance == "full":
            unit = roots / scales.unsqueeze(-1)
            self.unit_trils = PyroParam(unit, constraints.unit_lower_cholesky, event_dim=3)

    def distribution(self) -> TorchDistribution:
        """The mixture."""
        return self._mixture()

    def _mixture(self) -> TorchDistribution:
        components = dist.MultivariateNormal(self.means, scale_tril=self._roots())
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)

    def _roots(self) -> Tensor:
        """``[K, D, D]``: L_k."""
        if self.covariance == "diagonal":
            return torch.diag_embed(self.deviations)
        roots: Tensor = self.deviations.unsqueeze(-1) * self.unit_trils
        return roots

    def _draw_vector(self) -> Tensor:
        if len(self.logits) == 1:
            return self._auxiliary(
                "latent", SampledNormal(self.means[0], scale_tril=self._roots()[0])
            )
        choice = dist.Categorical(logits=self.logits)
        k = self._auxiliary("component", choice)
        gaussian = SampledNormal(self.means[k], scale_tril=self._roots()[k])
        e = self._auxiliary("latent", gaussian)
        # log q(e) takes the place of log q(k, e).
        joint = choice.log_prob(k) + gaussian.log_prob(e)
        rest = self._mixture().log_prob(e) - joint
        return self._auxiliary("of_mixture", dist.Delta(e, rest, event_dim=1))


def _allotted(shares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which mode each component starts at, and its weight.

    The heaviest modes have one each; what is left goes where the mass per component is largest.
    """
    heaviest = shares.argsort(descending=True)[:count]
    numbers = torch.zeros_like(shares)
    numbers[heaviest] = 1
    for _ in range(count - len(heaviest)):
        numbers[(shares / (numbers + (numbers == 0))).argmax()] += 1
    chosen = torch.arange(len(shares), device=shares.device).repeat_interleave(numbers.long())
    weights = shares[chosen] / numbers[chosen]
    return chosen, weights.clamp(min=torch.finfo(weights.dtype).tiny)


register_guide("mixture", autoguide_builder(MixtureGuide))
