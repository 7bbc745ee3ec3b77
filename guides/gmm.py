"""The explicit mean-field guide of a Gaussian mixture, with sampled assignments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vi.errors import GuideError

_START_WIDTH = 0.1
_SUREST_START = 3.0
_PSEUDO_ROWS = 10.0


class Mixture(Protocol):
    """What the guide needs of a mixture model."""

    num_components: int
    pi: Any
    sigma: Any

    def initial_values(self, data: Tensor) -> Mapping[str, Tensor]: ...


class GMMGuide:
    """q(mu) q(z) [q(pi)] [q(sigma)], a Pyro guide ``guide(data)`` for a Gaussian mixture.

    q(mu_k) = Normal(loc_k, scale_k),  q(z_i) = Categorical(logits_i), drawn, not summed out;
    where the model has them, q(pi) = Dirichlet and q(sigma_k) = LogNormal.

    The assignments have no reparameterized draw, so black-box inference with the score function
    trains them: ``fit(model, GMMGuide(model), data, objective=ScoreFunctionELBO())``. To sum them
    out instead, leave them to a named guide.

    Args:
        model: the mixture, a ``BayesianGMM``.
        num_rows: N, needed with minibatches, so that every row has logits of its own; by default the
            rows of the data that the guide is called with.

    Raises:
        GuideError: the model has full covariances.

    Example:
        >>> import torch
        >>> from ppl_vi import ScoreFunctionELBO, fit
        >>> from ppl_vi.guides import GMMGuide
        >>> from ppl_vi.models import BayesianGMM
        >>> _ = torch.manual_seed(1)
        >>> model = BayesianGMM(2, sigma=1.0)
        >>> data = torch.cat([torch.randn(50) - 4, torch.randn(50) + 4])
        >>> result = fit(model, GMMGuide(model), data, objective=ScoreFunctionELBO(), steps=300,
        ...              seed=0, progress=False)
        >>> result.sample(1_000)["mu"].mean(0).round()
        tensor([-4.,  4.])

    Source: Blei, Kucukelbir and McAuliffe (2017), section 2.2; Ranganath, Gerrish and Blei (2014).
    """

    def __init__(self, model: Mixture, num_rows: int | None = None) -> None:
        if isinstance(model.sigma, str) and model.sigma == "full":
            raise GuideError(
                "site 'correlation': GMMGuide has no factor for full covariances. Use the guide "
                "'multivariate_normal', or sigma='diagonal' in the model."
            )
        self.model, self.num_rows = model, num_rows

    def __call__(self, data: Tensor) -> None:
        """Draw all latents of the model."""
        start = _Start(self.model, data)
        self._draw_pi(start)
        event_dim = data.dim() - 1
        loc = pyro.param("mu_loc", lambda: start["mu"])
        scale = pyro.param(
            "mu_scale", lambda: _START_WIDTH * start["spread"], constraint=constraints.positive
        )
        with pyro.plate("component", self.model.num_components):
            pyro.sample("mu", dist.Normal(loc, scale).to_event(event_dim))
            self._draw_sigma(start)
        num_rows = self.num_rows or len(data)
        with pyro.plate("data", num_rows, subsample_size=len(data)):
            logits = pyro.param("z_logits", lambda: start.logits(num_rows), event_dim=1)
            pyro.sample("z", dist.Categorical(logits=logits))

    def _draw_pi(self, start: _Start) -> None:
        if isinstance(self.model.pi, str) and self.model.pi == "dirichlet":
            concentration = pyro.param(
                "pi_concentration",
                lambda: 1 + _PSEUDO_ROWS * start["pi"],
                constraint=constraints.positive,
            )
            pyro.sample("pi", dist.Dirichlet(concentration))

    def _draw_sigma(self, start: _Start) -> None:
        if isinstance(self.model.sigma, str) and self.model.sigma in ("spherical", "diagonal"):
            loc = pyro.param("sigma_loc", lambda: start["sigma"].log())
            scale = pyro.param(
                "sigma_scale",
                lambda: torch.full_like(start["sigma"], _START_WIDTH),
                constraint=constraints.positive,
            )
            pyro.sample("sigma", dist.LogNormal(loc, scale).to_event(loc.dim() - 1))


class _Start:
    """Starting values, asked of the model when a parameter is first met."""

    def __init__(self, model: Mixture, data: Tensor) -> None:
        self._model, self._data = model, data
        self._values: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._values is None:
            values = dict(self._model.initial_values(self._data))
            rows = self._data.reshape(len(self._data), -1)
            nearest = self._distances(values["mu"]).min(-1).values
            within = (nearest.mean() / rows.shape[1]).sqrt().clamp(min=1e-3)
            values["spread"] = (within * self._units()).expand_as(values["mu"])
            self._values = values
        return self._values[name].clone()  # the parameter store trains the very tensor it is given

    def _units(self) -> Tensor:
        """``[*event]``: the standard deviation of each dimension of the data."""
        deviation = self._data.std(0, correction=0)
        return torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def _distances(self, centers: Tensor) -> Tensor:
        """``[N, K]``: squared distances to the centers, each dimension in its own unit."""
        difference = (self._data.unsqueeze(1) - centers) / self._units()
        return difference.reshape(*difference.shape[:2], -1).square().sum(-1)

    def logits(self, num_rows: int) -> Tensor:
        """``[N, K]``: nearer centers are likelier, none for sure; level where rows are not at hand."""
        if num_rows != len(self._data):
            return self._data.new_zeros(num_rows, self._model.num_components)
        distances = self._distances(self["mu"])
        centered = -(distances - distances.mean(-1, keepdim=True))
        return centered.clamp(-_SUREST_START, _SUREST_START)
