"""Every conjugate likelihood: one sweep gives the exact posterior, and the bound is log p(x)."""

# ruff: noqa: N803, N806 (the names of the equations)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi.guides import CAVIGuide


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


A, B = 2.5, 1.5
COUNTS = [3.0, 0.0, 2.0, 1.0]
POSITIVES = [0.7, 2.0, 1.2, 3.0]
REALS = [1.0, -2.0, 0.5, 0.0]
POINTS = [[1.0, 2.0], [-1.0, 0.5], [0.0, 1.0], [2.0, 2.5]]
COVARIANCE = [[2.0, 0.5], [0.5, 1.0]]


def gamma(likelihood: Callable[[Any], Any], data: Any, shape: float, rate: Any) -> Any:
    """A latent Gamma(A, B), and what the data add to its shape and its rate."""
    return lambda: (
        dist.Gamma(torch.tensor(A), B),
        likelihood,
        torch.tensor(data),
        dist.Gamma(torch.tensor(A + shape), B + torch.as_tensor(rate(torch.tensor(data)))),
    )


def beta(likelihood: Callable[[Any], Any], data: Any, a: float, b: float) -> Any:
    return lambda: (
        dist.Beta(torch.tensor(A), B),
        likelihood,
        torch.tensor(data),
        dist.Beta(torch.tensor(A + a), torch.tensor(B + b)),
    )


def normal(likelihood: Callable[[Any], Any], data: Any, transform: Any = lambda x: x) -> Any:
    """A latent Normal(1, 2), seen with deviation 0.5."""

    def case() -> Any:
        x = transform(torch.tensor(data))
        precision = 1 / 4 + 4 * len(x)
        posterior = dist.Normal((1 / 4 + 4 * x.sum()) / precision, precision**-0.5)
        return dist.Normal(torch.tensor(1.0), 2.0), likelihood, torch.tensor(data), posterior

    return case


def vector(likelihood: Callable[[Any, Tensor], Any]) -> Any:
    """A latent mean vector, seen with a known covariance."""

    def case() -> Any:
        x, S = torch.tensor(POINTS), torch.tensor(COVARIANCE)
        precision = torch.eye(2) / 4 + len(x) * S.inverse()
        mean = torch.linalg.solve(precision, S.inverse() @ x.sum(0))
        prior = dist.MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
        posterior = dist.MultivariateNormal(mean, precision_matrix=precision)
        return prior, lambda m: likelihood(m, S), x, posterior

    return case


def shares(likelihood: Callable[[Any], Any], data: Any, counts: Any) -> Any:
    return lambda: (
        dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0])),
        likelihood,
        torch.tensor(data),
        dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0]) + torch.tensor(counts)),
    )


CASES = {
    "Exponential": gamma(lambda g: dist.Exponential(2 * g), POSITIVES, 4, lambda x: 2 * x.sum()),
    "Poisson": gamma(lambda g: dist.Poisson(3 * g), COUNTS, 6, lambda x: 12.0),
    "Gamma": gamma(lambda g: dist.Gamma(1.5, g), POSITIVES, 6, lambda x: x.sum()),
    "InverseGamma": gamma(
        lambda g: dist.InverseGamma(1.5, g), POSITIVES, 6, lambda x: (1 / x).sum()
    ),
    "Pareto": gamma(lambda g: dist.Pareto(0.5, g), POSITIVES, 4, lambda x: (x / 0.5).log().sum()),
    "Laplace": gamma(lambda g: dist.Laplace(0.2, 1 / g), REALS, 4, lambda x: (x - 0.2).abs().sum()),
    "Normal, precision": gamma(
        lambda g: dist.Normal(0.2, g.rsqrt()), REALS, 2, lambda x: (x - 0.2).square().sum() / 2
    ),
    "LogNormal, precision": gamma(
        lambda g: dist.LogNormal(0.2, g**-0.5),
        POSITIVES,
        2,
        lambda x: (x.log() - 0.2).square().sum() / 2,
    ),
    "HalfNormal": gamma(
        lambda g: dist.HalfNormal(1 / g.sqrt()), POSITIVES, 2, lambda x: x.square().sum() / 2
    ),
    "Bernoulli": beta(dist.Bernoulli, [1.0, 0.0, 1.0, 1.0], 3, 1),
    "Binomial": beta(lambda p: dist.Binomial(4, p), COUNTS, 6, 10),
    "Geometric": beta(dist.Geometric, COUNTS, 4, 6),
    "NegativeBinomial": beta(lambda p: dist.NegativeBinomial(2.5, p), COUNTS, 6, 10),
    "Normal": normal(lambda m: dist.Normal(m, 0.5), REALS),
    "LogNormal": normal(lambda m: dist.LogNormal(m, 0.5), POSITIVES, torch.log),
    "covariance_matrix": vector(lambda m, S: dist.MultivariateNormal(m, S)),
    "scale_tril": vector(
        lambda m, S: dist.MultivariateNormal(m, scale_tril=torch.linalg.cholesky(S))
    ),
    "Categorical": shares(dist.Categorical, [0, 2, 2, 1], [1.0, 1.0, 2.0]),
    "OneHotCategorical": shares(
        dist.OneHotCategorical, [[1.0, 0, 0], [0, 0, 1.0]], [1.0, 0.0, 1.0]
    ),
    "Multinomial": shares(
        lambda p: dist.Multinomial(4, p, validate_args=False), [[1.0, 0, 3], [2, 2, 0]], [3.0, 2, 3]
    ),
}


@pytest.mark.parametrize("rows", ["in a plate", "in an event"])
@pytest.mark.parametrize("name", CASES)
def test_one_sweep_gives_the_posterior(name: str, rows: str) -> None:
    prior, likelihood, data, posterior = CASES[name]()

    def model(x: Tensor) -> None:
        latent = pyro.sample("latent", prior)
        if rows == "in a plate":
            with pyro.plate("data", len(x)):
                pyro.sample("x", likelihood(latent), obs=x)
        else:
            pyro.sample("x", likelihood(latent).expand([len(x)]).to_event(1), obs=x)

    guide = CAVIGuide(model)
    guide.begin((data,), {}, {})
    bound = guide.sweep()
    found = guide.factors()["latent"]
    assert type(found).__name__ == type(posterior).__name__
    draws = found.sample((20,))
    torch.testing.assert_close(
        found.log_prob(draws), posterior.log_prob(draws), rtol=1e-10, atol=1e-10
    )
    at = draws[0]
    evidence = prior.log_prob(at) + likelihood(at).log_prob(data).sum() - posterior.log_prob(at)
    assert bound == pytest.approx(evidence.item(), rel=1e-10)
