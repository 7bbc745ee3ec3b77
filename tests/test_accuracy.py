"""Fits with defaults against exact posteriors, reference draws, and the family's own optimum."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, stats

from ppl_vi import FitResult, fit

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(200)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Problem(NamedTuple):
    """A one-dimensional conjugate problem: prior, likelihood, data, exact posterior."""

    prior: Any
    likelihood: Callable[[Any], Any]
    data: torch.Tensor
    posterior: Any
    constrain: Callable[[Any], Any]
    log_jacobian: Callable[[Any], Any]

    def model(self, x: torch.Tensor) -> None:
        z = pyro.sample("z", self.prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.likelihood(z), obs=x)


def normal(mean: float, width: float, noise: float, n: int, truth: float) -> Problem:
    generator = torch.Generator().manual_seed(3)
    x = truth + noise * torch.randn(n, generator=generator)
    precision = 1 / width**2 + n / noise**2
    posterior = stats.norm(
        (mean / width**2 + x.sum().item() / noise**2) / precision, precision**-0.5
    )
    prior = dist.Normal(mean, width)
    return Problem(prior, lambda z: dist.Normal(z, noise), x, posterior, lambda u: u, np.zeros_like)


def beta(a: float, b: float, ones: int, zeros: int) -> Problem:
    x = torch.tensor([1.0] * ones + [0.0] * zeros)
    posterior = stats.beta(a + ones, b + zeros)
    logit = (lambda u: 1 / (1 + np.exp(-u))), (lambda u: -np.logaddexp(0, -u) - np.logaddexp(0, u))
    return Problem(dist.Beta(a, b), dist.Bernoulli, x, posterior, *logit)


def gamma(shape: float, rate: float, counts: list[float]) -> Problem:
    posterior = stats.gamma(shape + sum(counts), scale=1 / (rate + len(counts)))
    x = torch.tensor(counts)
    return Problem(dist.Gamma(shape, rate), dist.Poisson, x, posterior, np.exp, lambda u: u)


def moments(problem: Problem, location: float, scale: float) -> tuple[float, float]:
    """Mean and standard deviation of the constrained Normal, by quadrature."""
    values = problem.constrain(location + scale * NODES)
    mean = (WEIGHTS * values).sum()
    return mean, ((WEIGHTS * values**2).sum() - mean**2) ** 0.5


def family_optimum(problem: Problem) -> tuple[float, float]:
    """The moments of the best Normal in unconstrained space, by quadrature."""

    def negative_elbo(parameters: np.ndarray) -> float:
        u = parameters[0] + np.exp(parameters[1]) * NODES
        log_joint = problem.posterior.logpdf(problem.constrain(u)) + problem.log_jacobian(u)
        return float(-(WEIGHTS * log_joint).sum() - parameters[1])

    best = optimize.minimize(
        negative_elbo, [1.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    )
    return moments(problem, best.x[0], np.exp(best.x[1]))


def fitted_moments(problem: Problem, result: FitResult) -> tuple[float, float]:
    with result.fitted.applied():
        location, scale = (value.item() for value in result.guide._own("z"))
    return moments(problem, location, scale)


WELL_DETERMINED = {
    "Normal": normal(0.0, 10.0, 1.0, 30, 3.0),
    "Beta(16, 14)": beta(10.0, 10.0, 6, 4),
    "Gamma(30, 8)": gamma(3.0, 1.0, [3.0, 4.0, 2.0, 5.0, 6.0, 3.0, 4.0]),
}
SCALES = {
    "Normal far away": normal(0.0, 1000.0, 1.0, 30, 700.0),
    "narrow Normal": normal(0.0, 1.0, 0.01, 100, 0.5),
    "wide Normal": normal(0.0, 100.0, 30.0, 10, 50.0),
    "Gamma(300, 8)": gamma(3.0, 1.0, [30.0, 40.0, 42.0, 55.0, 66.0, 33.0, 31.0]),
}
UNBALANCED = {
    "Gamma(3, 2)": gamma(2.0, 1.0, [1.0]),
    "Beta(11, 1)": beta(1.0, 1.0, 10, 0),
}


def some_slow(problems: dict[str, Problem], *slow: str) -> list[Any]:
    """The names, some of which wait for the long tests."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in problems]


def check_exact(problem: Problem, seed: int) -> None:
    result = fit(problem.model, data=problem.data, seed=seed, progress=False)
    mean, deviation = fitted_moments(problem, result)
    assert abs(mean - problem.posterior.mean()) < 0.05 * problem.posterior.std()
    assert deviation == pytest.approx(problem.posterior.std(), rel=0.03)


@pytest.mark.parametrize("name", some_slow(WELL_DETERMINED, "Beta(16, 14)", "Gamma(30, 8)"))
def test_defaults_reach_the_exact_posterior(name: str) -> None:
    check_exact(WELL_DETERMINED[name], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [*WELL_DETERMINED, *SCALES])
def test_defaults_reach_the_exact_posterior_from_any_seed_and_scale(name: str, seed: int) -> None:
    check_exact({**WELL_DETERMINED, **SCALES}[name], seed)


@pytest.mark.parametrize("name", some_slow(UNBALANCED, "Beta(11, 1)"))
def test_defaults_reach_the_optimum_of_the_family(name: str) -> None:
    problem = UNBALANCED[name]
    result = fit(problem.model, data=problem.data, seed=0, progress=False)
    assert fitted_moments(problem, result) == pytest.approx(family_optimum(problem), rel=0.03)


def eight_schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 3_000}, pytest.param({}, marks=pytest.mark.slow)],
    ids=["fast", "default"],
)
def test_eight_schools(shared_data: Path, settings: dict[str, int]) -> None:
    posterior = json.loads(
        (shared_data / "posteriordb" / "eight_schools-eight_schools_noncentered.json").read_text()
    )
    data = tuple(
        torch.tensor(posterior["data"][name], dtype=torch.float) for name in ("y", "sigma")
    )
    guide = "multivariate_normal"
    result = fit(eight_schools, guide, data, seed=0, progress=False, **settings)
    draws = result.sample(10_000)
    for name, reference in posterior["reference"].items():
        site, _, index = name.rstrip("]").partition("[")
        values = draws[site][:, int(index) - 1] if index else draws[site]
        assert abs(values.mean().item() - reference["mean"]) < 0.25 * reference["sd"], name
