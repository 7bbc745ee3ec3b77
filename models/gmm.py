"""The Bayesian Gaussian mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from torch import Tensor

from ppl_vi.clusters import Clusters, find_clusters
from ppl_vi.errors import DataError, ModelError

Spread = float | Tensor | Literal["learned", "spherical", "diagonal", "full"]


class BayesianGMM:
    """A mixture of K Gaussians with unknown means, a Pyro model ``model(data)``.

    mu_k ~ Normal(0, tau),  z_i ~ Categorical(pi),  x_i ~ Normal(mu_{z_i}, sigma)

    with tau, pi and sigma fixed or learned as point estimates (the textbook model, and the default);
    by option pi ~ Dirichlet(concentration), and sigma unknown for each component: spherical,
    diagonal, or full with Sigma_k = diag(sigma_k) R_k diag(sigma_k), R_k ~ LKJ(1). Unknown sigma_kd
    have the prior HalfCauchy(spread).

    Sites: ``mu`` [K, *event], ``z`` [N], ``x`` [N, *event]; by option ``pi`` [K], ``sigma`` [K] or
    [K, D], ``correlation`` [K, D, D], the Cholesky factor of R_k. Learned tau, pi and sigma are
    parameters of the same names. Leave ``z`` out of the guide, and it is summed out. With ``"cavi"``,
    unknown sigma and correlations are left to gradients, and all else has exact updates.

    Args:
        num_components: K.
        tau: prior standard deviation of the means in the data's unit, a positive number or a tensor
            ``[*event]``, or ``"learned"``.
        pi: weights ``[K]`` that sum to one, ``"learned"`` or ``"dirichlet"``.
        sigma: standard deviation within components in the data's unit, a positive number or a tensor
            ``[*event]``, or ``"learned"`` (one for all components and dimensions), ``"spherical"``,
            ``"diagonal"`` or ``"full"``.
        concentration: of the Dirichlet prior, for each component.
        spread: scale of the half-Cauchy prior on unknown sigma, in the data's unit.

    Data are ``[N]`` or ``[N, D]`` floating-point; ``"diagonal"`` and ``"full"`` need ``[N, D]``.

    Raises:
        ModelError: an option is none of these.
        DataError: the data have another shape, or fewer distinct rows than components.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import BayesianGMM
        >>> data = torch.cat([torch.randn(50) - 4, torch.randn(50) + 4])
        >>> result = fit(BayesianGMM(2), data=data, steps=200, seed=0, progress=False)
        >>> result.sample(1_000)["mu"].mean(0).round()
        tensor([-4.,  4.])

    Source: Bishop (2006), chapters 9 and 10; Blei, Kucukelbir and McAuliffe (2017), section 2.1.
    """

    def __init__(
        self,
        num_components: int,
        *,
        tau: float | Tensor | Literal["learned"] = "learned",
        pi: Tensor | Literal["learned", "dirichlet"] = "learned",
        sigma: Spread = "learned",
        concentration: float = 1.0,
        spread: float = 1.0,
    ) -> None:
        if isinstance(num_components, bool) or not isinstance(num_components, int):
            raise ModelError(f"num_components must be an integer, not {num_components!r}.")
        if num_components < 1:
            raise ModelError(f"num_components must be 1 or more, not {num_components}.")
        self.num_components = num_components
        self.tau = _positive("tau", tau, ("learned",))
        self.pi = _weights(pi, num_components)
        self.sigma = _positive("sigma", sigma, ("learned", "spherical", "diagonal", "full"))
        self.concentration = _number("concentration", concentration)
        self.spread = _number("spread", spread)

    def __call__(self, data: Tensor) -> Tensor:
        """The joint density of the latents and the data; returns the data's site."""
        self._check(data)
        event_shape = data.shape[1:]
        pi = self._pi(data)
        with pyro.plate("component", self.num_components):
            prior = dist.Normal(torch.zeros_like(data[0]), self._tau(data))
            mu = pyro.sample("mu", prior.to_event(len(event_shape)))
            sigma = self._sigma(data)
            correlation = self._correlation(data)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(pi))
            x: Tensor = pyro.sample(
                "x", self._likelihood(z, mu, sigma, correlation, len(event_shape)), obs=data
            )
        return x

    def _pi(self, data: Tensor) -> Tensor:
        uniform = data.new_full((self.num_components,), 1 / self.num_components)
        if isinstance(self.pi, Tensor):
            return self.pi.to(data)
        if self.pi == "learned":
            learned: Tensor = pyro.param("pi", uniform, constraint=constraints.simplex)
            return learned
        drawn: Tensor = pyro.sample(
            "pi", dist.Dirichlet(torch.full_like(uniform, self.concentration))
        )
        return drawn

    def _tau(self, data: Tensor) -> Tensor:
        if isinstance(self.tau, Tensor):
            return self.tau.to(data)
        start = _not_zero(data.detach().square().mean().sqrt())
        tau: Tensor = pyro.param("tau", start, constraint=constraints.positive)
        return tau

    def _sigma(self, data: Tensor) -> Tensor:
        """``[*event]`` where shared, ``[..., K]`` or ``[..., K, D]`` where unknown."""
        if isinstance(self.sigma, Tensor):
            return self.sigma.to(data)
        if self.sigma == "learned":
            sigma: Tensor = pyro.param(
                "sigma",
                _not_zero(data.detach().std(correction=0)) / self.num_components,
                constraint=constraints.positive,
            )
            return sigma
        prior = dist.HalfCauchy(data.new_tensor(self.spread))
        if self.sigma != "spherical":
            prior = prior.expand(data.shape[1:]).to_event(1)
        drawn: Tensor = pyro.sample("sigma", prior)
        return drawn

    def _correlation(self, data: Tensor) -> Tensor | None:
        if self.sigma != "full":
            return None
        one = data.new_ones(())
        factor: Tensor = pyro.sample("correlation", dist.LKJCholesky(data.shape[1], one))
        return factor

    def _likelihood(
        self, z: Tensor, mu: Tensor, sigma: Tensor, correlation: Tensor | None, event_dim: int
    ) -> Any:
        mean = _gather(mu, z, event_dim)
        if correlation is not None:
            scale = sigma.unsqueeze(-1) * correlation
            return dist.MultivariateNormal(mean, scale_tril=_gather(scale, z, 2))
        if self.sigma == "spherical":
            sigma = _gather(sigma, z, 0)
            sigma = sigma.reshape(*sigma.shape, *(1,) * event_dim)
        elif self.sigma == "diagonal":
            sigma = _gather(sigma, z, 1)
        return dist.Normal(mean, sigma).to_event(event_dim)

    def initial_values(self, data: Tensor) -> dict[str, Tensor]:
        """Starting values by site and parameter: clusters by k-means++ and their moments.

        Args:
            data: ``[N]`` or ``[N, D]``.

        Raises:
            DataError: there are fewer distinct rows than components.
        """
        self._check(data)
        clusters = find_clusters(data.reshape(len(data), -1), self.num_components)
        if self._distinguishable:
            # A fixed weight belongs to the cluster of its rank in size.
            order = clusters.shares.argsort()[self.pi.argsort().argsort()]
            clusters = Clusters(*(part[order] for part in clusters))
        center = clusters.means.reshape(self.num_components, *data.shape[1:])
        pooled = clusters.deviations.square().mean().sqrt()
        sigma = {
            "learned": pooled,
            "spherical": clusters.deviations.square().mean(-1).sqrt(),
            "diagonal": clusters.deviations,
            "full": clusters.deviations,
        }
        # A single centre may lie at 0, where no scale can start.
        tau = torch.maximum(center.square().mean().sqrt(), 0.1 * pooled)
        values = {"mu": center}
        if isinstance(self.pi, str):
            values["pi"] = clusters.shares
        if isinstance(self.tau, str):
            values["tau"] = tau
        if isinstance(self.sigma, str):
            values["sigma"] = sigma[self.sigma]
        if self.sigma == "full":
            values["correlation"] = torch.linalg.cholesky(clusters.correlations)
        return values

    def relabel(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the components into canonical order: by the first coordinate of their posterior mean.

        Args:
            draws: ``[num_draws, *site]`` by site; components are the first dimension of a site.

        Returns:
            The same draws, every one under the same permutation; labels ``z`` follow. Fixed unequal
            weights tell the components apart, which then keep the order of the weights.
        """
        if "mu" not in draws or self._distinguishable:
            return dict(draws)
        first = draws["mu"].reshape(*draws["mu"].shape[:2], -1)[..., 0].mean(0)
        order = first.argsort()
        renamed = {n: draws[n][:, order] for n in _OF_COMPONENTS if n in draws}
        if "z" in draws:
            renamed["z"] = order.argsort()[draws["z"]]
        return {**draws, **renamed}

    def responsibilities(self, draws: Mapping[str, Tensor]) -> Tensor:
        """``[N, K]``: the posterior probability of each component for each row.

        The share of draws whose label is k, with a standard error of at most 0.5 / sqrt(num_draws).

        Args:
            draws: by site, with the labels ``z`` [num_draws, N], as ``result.sample()`` gives them.
        """
        components = torch.arange(self.num_components, device=draws["z"].device)
        labelled = draws["z"].unsqueeze(-1) == components
        return labelled.to(draws["mu"].dtype).mean(0)

    @property
    def _distinguishable(self) -> bool:
        """Whether fixed weights tell the components apart."""
        return isinstance(self.pi, Tensor) and bool((self.pi != self.pi[0]).any())

    def _check(self, data: Any) -> None:
        if not isinstance(data, Tensor) or data.dim() not in (1, 2) or not data.is_floating_point():
            found = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise DataError(f"BayesianGMM: data must be floating-point [N] or [N, D], not {found}.")
        if not len(data):
            raise DataError("BayesianGMM: data have no rows. Pass at least one.")
        if isinstance(self.sigma, str) and self.sigma == "full" and data.shape[1:] == (1,):
            raise DataError(
                "BayesianGMM: sigma='full' needs two dimensions or more, but data are [N, 1]. Use "
                "sigma='diagonal'."
            )
        if data.dim() == 1 and self.sigma in ("diagonal", "full"):
            raise DataError(
                f"BayesianGMM: sigma={self.sigma!r} needs data [N, D], but they are [N]. Use "
                f"sigma='spherical', or data.unsqueeze(-1)."
            )


_OF_COMPONENTS = ("mu", "pi", "sigma", "correlation")
"""Sites whose first dimension is the component."""


def _gather(values: Tensor, z: Tensor, event_dim: int) -> Tensor:
    """``values[..., z, *event]`` for ``[..., K, *event]``, batched over particles on the left.

    ``values`` have one dimension of components where the labels have one of rows.
    """
    events: Any = (slice(None),) * event_dim
    if values.dim() == 1 + event_dim:  # a single particle
        return values[(z, *events)]
    rows = values.unsqueeze(-2 - event_dim)
    gathered: Tensor = Vindex(rows)[(Ellipsis, z, *events)]
    return gathered


def _positive(name: str, value: Any, words: tuple[str, ...]) -> Any:
    if isinstance(value, str) and value in words:
        return value
    allowed = " or ".join(["a positive number or tensor", *(repr(word) for word in words)])
    if isinstance(value, (str, bool)) or not isinstance(value, (int, float, Tensor)):
        raise ModelError(f"{name} must be {allowed}, not {value!r}.")
    dtype = torch.get_default_dtype()
    if isinstance(value, Tensor) and value.is_floating_point():
        dtype = value.dtype
    tensor = torch.as_tensor(value, dtype=dtype)
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise ModelError(f"{name} must be {allowed}, not {value!r}.")
    return tensor


def _number(name: str, value: Any) -> float:
    tensor: Tensor = _positive(name, value, ())
    if tensor.numel() != 1:
        raise ModelError(f"{name} must be one positive number, not {value!r}.")
    return float(tensor)


def _not_zero(scale: Tensor) -> Tensor:
    """One in place of zero, where data are constant."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _weights(pi: Any, num_components: int) -> Any:
    if isinstance(pi, str) and pi in ("learned", "dirichlet"):
        return pi
    weights = torch.as_tensor(pi) if isinstance(pi, (list, tuple, Tensor)) else torch.empty(0)
    fits = weights.shape == (num_components,) and bool((weights > 0).all())
    if not fits or abs(float(weights.sum()) - 1) > 1e-4:
        raise ModelError(
            f"pi must be 'learned', 'dirichlet' or {num_components} positive weights that sum to "
            f"one, not {pi!r}."
        )
    return weights
