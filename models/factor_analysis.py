"""Factor analysis and probabilistic principal components."""

# ruff: noqa: N806 (the names of the equations)

from __future__ import annotations

from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.models.checks import check_shape, count, deviation, one_of, positive

_LEAST = 1e-2
"""Of the data's variance, what noise and columns of W start with at least."""


class FactorAnalysis:
    """Rows as affine functions of a few factors, a Pyro model ``model(data)``.

    x_i ~ Normal(W z_i + mu, tau^-½),  z_i ~ Normal(0, 1),  W_dk ~ Normal(0, alpha_k^-½),
    mu ~ Normal(mean of the data, spread),  tau ~ Gamma(1, spread²),  alpha_k ~ Gamma(1, spread²)

    With a precision tau_d for each feature it is factor analysis, with one for all probabilistic
    principal components; the precisions alpha_k of the columns of W switch components off that the data
    do not need. Factors are known up to a rotation.

    Sites: ``W`` [D, K], ``alpha`` [K], ``mu`` [D], ``tau`` [D] or [], ``z`` [N, K], ``x`` [N, D].

    Args:
        num_components: K.
        noise: ``"diagonal"`` (factor analysis) or ``"isotropic"`` (principal components).
        spread: the scale of the data; by default their standard deviation over all features.

    Data are ``[N, D]`` floating-point.

    Raises:
        ModelError: an option is none of these.
        DataError: the data have another shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import FactorAnalysis
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(100, 1) @ torch.tensor([[2.0, -1.0, 0.0]]) + 0.1 * torch.randn(100, 3)
        >>> result = fit(FactorAnalysis(1, noise="isotropic"), "cavi", data, seed=0, progress=False)
        >>> W = result.sample(200)["W"].mean(0).squeeze()
        >>> (W * W[0].sign()).round() + 0.0
        tensor([ 2., -1.,  0.])

    Source: Tipping and Bishop (1999); Bishop (1999), variational principal components.
    """

    def __init__(
        self,
        num_components: int,
        *,
        noise: Literal["diagonal", "isotropic"] = "diagonal",
        spread: float | None = None,
    ) -> None:
        self.num_components = count("num_components", num_components)
        self.noise = one_of("noise", noise, ("diagonal", "isotropic"))
        self.spread = None if spread is None else positive("spread", spread)

    def __call__(self, data: Tensor) -> Tensor:
        """The joint density of the latents and the data; returns the data's site."""
        check_shape("FactorAnalysis: data", data, "[N, D]")
        own = deviation(data)
        spread = own.square().mean().sqrt()
        spread = spread if self.spread is None else torch.full_like(spread, self.spread)
        precision = dist.Gamma(torch.ones_like(spread), spread.square())
        zeros = data.new_zeros(self.num_components)
        alpha = pyro.sample("alpha", precision.expand(zeros.shape).to_event(1))
        each = data.shape[1:] if self.noise == "diagonal" else torch.Size()
        tau = pyro.sample("tau", precision.expand(each).to_event(len(each)))
        mu = pyro.sample("mu", dist.Normal(data.detach().mean(0), spread).to_event(1))
        with pyro.plate("features", data.shape[1]):
            W = pyro.sample("W", dist.Normal(zeros, alpha.rsqrt()).to_event(1))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            x: Tensor = pyro.sample(
                "x", dist.Normal(z @ W.mT + mu, tau.rsqrt()).to_event(1), obs=data
            )
        return x

    def initial_values(self, data: Tensor) -> dict[str, Tensor]:
        """Starting values by site: principal components, which coordinate ascent is slow to turn to.

        Args:
            data: ``[N, D]``.
        """
        check_shape("FactorAnalysis: data", data, "[N, D]")
        center = data.detach().mean(0)
        left, lengths, right = torch.linalg.svd(data.detach() - center, full_matrices=False)
        found = min(self.num_components, len(lengths))
        size = len(data) ** 0.5
        z = torch.randn(len(data), self.num_components).to(data)
        z[:, :found] = size * left[:, :found]
        W = data.new_zeros(data.shape[1], self.num_components)
        W[:, :found] = right[:found].mT * lengths[:found] / size
        rest = (data.detach() - center - z @ W.mT).square()
        rest = rest.mean(0) if self.noise == "diagonal" else rest.mean()
        # Of a feature that the components explain, some noise is left.
        tau = 1 / (rest + _LEAST * deviation(data).square().mean())
        alpha = 1 / (W.square().mean(0) + _LEAST * deviation(data).square().mean())
        return {"W": W, "z": z, "mu": center, "tau": tau, "alpha": alpha}
