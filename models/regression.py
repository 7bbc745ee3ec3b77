"""Bayesian linear regression."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vi.errors import ModelError
from ppl_vi.models.checks import check_lengths, check_shape, positive


class BayesianLinearRegression:
    """Linear regression with unknown noise, a Pyro model ``model(x, y=None)``.

    y_i ~ Normal(w · x_i + b, tau^-½),  w_d ~ Normal(0, alpha_d^-½),  b ~ Normal(0, spread),
    tau ~ Gamma(shape, rate),  alpha_d ~ Gamma(shape, rate)

    With a precision alpha_d for each weight, those of features that do not matter grow, and their
    weights go to zero (automatic relevance determination, ARD); else all weights share one alpha.

    Sites: ``w`` [D], ``b``, ``tau``, ``alpha`` [D] or [], ``y`` [N].

    Args:
        relevance: whether each weight has a precision of its own.
        shape: of the Gamma priors.
        rate: of the Gamma priors; the defaults suit features and responses of unit scale.
        spread: prior standard deviation of the intercept, in the unit of y.

    Data are ``x`` [N, D] and ``y`` [N], floating-point; without ``y`` they are drawn, as
    ``result.predict(new_x)`` does.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import BayesianLinearRegression
        >>> x = torch.randn(100, 2)
        >>> y = 3 * x[:, 0] + 1 + 0.1 * torch.randn(100)
        >>> result = fit(BayesianLinearRegression(), "cavi", (x, y), progress=False)
        >>> result.guide.factors()["w"].mean.round() + 0.0
        tensor([3., 0.])

    Source: Bishop (2006), sections 7.2 and 10.3; MacKay (1994).
    """

    def __init__(
        self,
        *,
        relevance: bool = True,
        shape: float = 1.0,
        rate: float = 1.0,
        spread: float = 10.0,
    ) -> None:
        if not isinstance(relevance, bool):
            raise ModelError(f"relevance must be True or False, not {relevance!r}.")
        self.relevance = relevance
        self.shape = positive("shape", shape)
        self.rate = positive("rate", rate)
        self.spread = positive("spread", spread)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The joint density of the latents and the responses; returns the responses' site."""
        name = "BayesianLinearRegression"
        check_shape(f"{name}: x", x, "[N, D]")
        if y is not None:
            check_shape(f"{name}: y", y, "[N]")
            check_lengths(name, x=x, y=y)
        one = x.new_ones(())
        precision = dist.Gamma(self.shape * one, self.rate * one)
        tau = pyro.sample("tau", precision)
        each = one.expand(x.shape[1])
        prior = dist.Gamma(self.shape * each, self.rate * each).to_event(1)
        alpha = pyro.sample("alpha", prior if self.relevance else precision)
        w = pyro.sample("w", dist.Normal(0 * each, alpha.rsqrt()).to_event(1))
        b = pyro.sample("b", dist.Normal(0 * one, self.spread))
        with pyro.plate("data", len(x)):
            drawn: Tensor = pyro.sample("y", dist.Normal(x @ w + b, tau.rsqrt()), obs=y)
        return drawn
