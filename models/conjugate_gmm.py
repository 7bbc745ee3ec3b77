"""The Gaussian mixture with conjugate priors."""

from __future__ import annotations

from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.clusters import find_clusters
from ppl_vi.distributions import Wishart
from ppl_vi.models.checks import check_shape, count, deviation, one_of, positive
from ppl_vi.models.sticks import stick_breaking, sticks_of

_SPREAD = 0.3
"""Of the data's own."""


class ConjugateGMM:
    """A mixture of K Gaussians with conjugate priors, a Pyro model ``model(data)``.

    mu_k ~ Normal(mean of the data, tau),  z_i ~ Categorical(pi),  x_i ~ Normal(mu_{z_i}, 1 / Λ_{z_i})

    with pi ~ Dirichlet(concentration), or pi_k = v_k Π_{j<k} (1 - v_j), v_k ~ Beta(1, concentration), a
    Dirichlet process truncated at K components. Precisions are diagonal, Λ_kd ~ Gamma(1, spread_d²), or
    full, Λ_k ~ Wishart(D + 1, diag(spread)⁻² / (D + 1)), so that E Λ is that of ``spread``.

    Sites: ``mu`` [K, D], ``precision`` [K, D] or [K, D, D], ``z`` [N], ``x`` [N, D], and ``pi`` [K] or
    ``sticks`` [K - 1]. Leave ``z`` out of a guide, and it is summed out. ``BayesianGMM`` has priors on
    standard deviations and correlations instead, which coordinate ascent cannot use.

    Args:
        num_components: K.
        pi: ``"dirichlet"`` or ``"dirichlet_process"``.
        precision: ``"diagonal"`` or ``"full"``.
        concentration: of the Dirichlet prior for each component, or of the process; 1 / K for the one
            and 1 for the other by default, which empty components that the data do not need.
        tau: prior standard deviation of the means in the data's unit; the data's own by default.
        spread: the prior's guess of the standard deviation within components in the data's unit; by
            default 0.3 of the data's own. It counts as two rows do, so a small guess does no harm.

    Data are ``[N, D]`` floating-point. Priors that look at the data look at those at hand: with
    ``batch_size`` at each batch, which matters little, and not at all to given ``tau`` and ``spread``.

    Raises:
        ModelError: an option is none of these.
        DataError: the data have another shape, or fewer distinct rows than components.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import ConjugateGMM
        >>> data = torch.cat([torch.randn(50, 2) - 4, torch.randn(50, 2) + 4])
        >>> result = fit(ConjugateGMM(2), "cavi", data, seed=0, progress=False)
        >>> result.guide.factors()["mu"].mean.round()
        tensor([[-4., -4.],
                [ 4.,  4.]])

    Source: Bishop (2006), section 10.2; Blei and Jordan (2006).
    """

    def __init__(
        self,
        num_components: int,
        *,
        pi: Literal["dirichlet", "dirichlet_process"] = "dirichlet",
        precision: Literal["diagonal", "full"] = "diagonal",
        concentration: float | None = None,
        tau: float | None = None,
        spread: float | None = None,
    ) -> None:
        self.num_components = count("num_components", num_components)
        self.pi = one_of("pi", pi, ("dirichlet", "dirichlet_process"))
        self.precision = one_of("precision", precision, ("diagonal", "full"))
        usual = 1.0 if pi == "dirichlet_process" else 1 / num_components
        given = usual if concentration is None else concentration
        self.concentration = positive("concentration", given)
        self.tau = None if tau is None else positive("tau", tau)
        self.spread = None if spread is None else positive("spread", spread)

    def __call__(self, data: Tensor) -> Tensor:
        """The joint density of the latents and the data; returns the data's site."""
        check_shape("ConjugateGMM: data", data, "[N, D]")
        own = deviation(data)
        tau = own if self.tau is None else torch.full_like(own, self.tau)
        spread = _SPREAD * own
        spread = spread if self.spread is None else torch.full_like(own, self.spread)
        pi = self._weights(data)
        with pyro.plate("component", self.num_components):
            center = data.detach().mean(0)
            mu = pyro.sample("mu", dist.Normal(center, tau).to_event(1))
            precision = pyro.sample("precision", self._prior(spread))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(pi))
            x: Tensor = pyro.sample("x", self._component(mu, precision, z), obs=data)
        return x

    def _weights(self, data: Tensor) -> Tensor:
        """``[K]``."""
        if self.pi == "dirichlet_process":
            return stick_breaking("sticks", self.num_components, self.concentration, data)
        prior = dist.Dirichlet(data.new_full((self.num_components,), self.concentration))
        pi: Tensor = pyro.sample("pi", prior)
        return pi

    def _prior(self, spread: Tensor) -> Any:
        if self.precision == "diagonal":
            return dist.Gamma(torch.ones_like(spread), spread.square()).to_event(1)
        freedom = len(spread) + 1.0
        return Wishart(freedom, precision_matrix=torch.diag(freedom * spread.square()))

    def _component(self, mu: Tensor, precision: Tensor, z: Tensor) -> Any:
        if self.precision == "diagonal":
            return dist.Normal(mu[z], precision[z].rsqrt()).to_event(1)
        return dist.MultivariateNormal(mu[z], precision_matrix=precision[z])

    def initial_values(self, data: Tensor) -> dict[str, Tensor]:
        """Starting values by site: clusters by k-means++ and their moments.

        Args:
            data: ``[N, D]``.

        Raises:
            DataError: there are fewer distinct rows than components.
        """
        check_shape("ConjugateGMM: data", data, "[N, D]")
        clusters = find_clusters(data, self.num_components)
        precision = clusters.deviations.square().reciprocal()
        if self.precision == "full":
            scale = clusters.deviations
            covariance = scale.unsqueeze(-1) * clusters.correlations * scale.unsqueeze(-2)
            precision = torch.linalg.inv(covariance)
        values = {"mu": clusters.means, "precision": precision}
        if self.pi == "dirichlet_process":
            return {**values, "sticks": sticks_of(clusters.shares)}
        return {**values, "pi": clusters.shares}
