"""Posteriors of posteriordb at defaults: regressions against the optimum of the Gaussian family."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from ppl_vi import fit

PROGRAMS = Path(__file__).parents[2] / "benchmarks" / "posteriordb_programs.py"
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(100)
WEIGHTS = WEIGHTS / WEIGHTS.sum()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAMS.is_file(), reason="the benchmarks are not here"),
]


@pytest.fixture
def posteriors():
    spec = importlib.util.spec_from_file_location("posteriordb_programs", PROGRAMS)
    module = sys.modules["posteriordb_programs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_default_dtype(torch.float64)
    yield module.POSTERIORS
    torch.set_default_dtype(torch.float32)


def design(name, arguments):
    """Predictors, y, the Gaussian prior of the coefficients (means, deviations), log p(sigma)."""

    def half_cauchy(sigma):
        return stats.halfcauchy.logpdf(sigma, scale=2.5)

    if name.startswith("kilpisjarvi"):
        x, y, p = arguments
        means, deviations = [p["pmualpha"], p["pmubeta"]], [p["psalpha"], p["psbeta"]]
        return np.stack([np.ones(len(x)), x], 1), y.numpy(), means, deviations, np.zeros_like
    if name.startswith("arK"):
        lagged, y = (a.numpy() for a in arguments)
        x = np.concatenate([np.ones((len(y), 1)), lagged], 1)
        return x, y, [0.0] * 6, [10.0] * 6, half_cauchy
    x, y = (a.numpy() for a in arguments)
    flat = [np.inf] * x.shape[1]
    prior = half_cauchy if name.startswith("kidiq") else np.zeros_like
    return x, y, [0.0] * x.shape[1], flat, prior


def family_optimum(x, y, means, deviations, log_prior):
    """The best Gaussian over (beta, log sigma) by long deterministic optimisation.

    Given s = log sigma its beta is Gaussian, with a mean linear in s, so that the expected log joint is
    exact in beta, and a quadrature of 100 nodes in s. Returns means and deviations of the coefficients,
    and of sigma.
    """
    n, k = x.shape
    least, *_ = np.linalg.lstsq(x, y, rcond=None)
    residual = y - x @ least
    noise = np.sqrt(residual @ residual / (n - k))
    unit = noise * np.linalg.cholesky(np.linalg.inv(x.T @ x))  # beta = least + unit b
    inside, weak = x @ unit, np.asarray(deviations)

    def negative_elbo(vector):
        center, slope, middle = vector[:k], vector[k : 2 * k], vector[2 * k]
        width = np.exp(vector[2 * k + 1])
        root = np.zeros((k, k))
        root[np.tril_indices(k)] = vector[2 * k + 2 :]
        diagonal = np.exp(np.diag(root))
        root[np.diag_indices(k)] = diagonal
        total = -0.0
        within = ((inside @ root) ** 2).sum()
        drift = (((unit @ root) / weak[:, None]) ** 2).sum()
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            s = middle + width * node + np.log(noise)
            b = center + slope * node
            errors = residual - inside @ b
            log_joint = -n * s - 0.5 * np.exp(-2 * s) * (errors @ errors + within)
            log_joint += log_prior(np.exp(s)) + s
            log_joint -= 0.5 * ((((least + unit @ b) - means) / weak) ** 2).sum() + 0.5 * drift
            total += weight * log_joint
        return -(total + np.log(diagonal).sum() + np.log(width))

    start = np.zeros(2 * k + 2 + k * (k + 1) // 2)
    start[2 * k + 1] = -0.5 * np.log(2 * n)
    settings = {"maxiter": 5_000, "maxfun": 10**6, "ftol": 1e-14, "gtol": 1e-7}
    best = optimize.minimize(negative_elbo, start, method="L-BFGS-B", options=settings).x
    root = np.zeros((k, k))
    root[np.tril_indices(k)] = best[2 * k + 2 :]
    root[np.diag_indices(k)] = np.exp(np.diag(root))
    slope, width = best[k : 2 * k], np.exp(best[2 * k + 1])
    covariance = unit @ (root @ root.T + np.outer(slope, slope)) @ unit.T
    log_sigma = best[2 * k] + np.log(noise), width
    sigma = stats.lognorm(s=log_sigma[1], scale=np.exp(log_sigma[0]))
    return least + unit @ best[:k], np.sqrt(np.diag(covariance)), sigma.std()


@pytest.mark.parametrize(
    "name",
    [
        "arK-arK",
        "earnings-logearn_interaction",
        "kidiq-kidscore_interaction",
        "kilpisjarvi_mod-kilpisjarvi",
        "mesquite-logmesquite",
    ],
)
def test_regressions_reach_the_optimum_of_the_family(posteriors, shared_data, name):
    content = json.loads((shared_data / "posteriordb" / f"{name}.json").read_text())
    posterior = posteriors[name]
    arguments = posterior.arguments(content["data"])
    means, deviations, sigma = family_optimum(*design(name, arguments))
    result = fit(posterior.model, "multivariate_normal", arguments, seed=0, progress=False)
    guide, reference = result.guide, content["reference"]
    with torch.no_grad():
        found = guide.unwhitened(guide.loc).numpy()
        own = (guide.factor @ guide._root()).square().sum(-1).sqrt().numpy()
    # Coefficients come first, and sigma last, on the log scale.
    np.testing.assert_allclose(own[:-1], deviations, rtol=0.1)
    lognormal = stats.lognorm(s=own[-1], scale=np.exp(found[-1]))
    assert lognormal.std() == pytest.approx(sigma, rel=0.03)
    assert (np.abs(found[:-1] - means) < 0.1 * deviations).all()
    known = [reference[q] for q in reference if q != "sigma"]
    for value, deviation, quantity in zip(found[:-1], deviations, known, strict=True):
        assert abs(value - quantity["mean"]) < 0.1 * quantity["sd"]
        assert deviation == pytest.approx(quantity["sd"], rel=0.2)
    assert abs(lognormal.mean() - reference["sigma"]["mean"]) < 0.1 * reference["sigma"]["sd"]
    print(name, "sigma's deviation", sigma / reference["sigma"]["sd"], "of the reference")


@pytest.mark.parametrize("guide", ["structured", "mixture", "flow"])
def test_eight_schools_needs_a_guide_that_bends(posteriors, shared_data, guide):
    """A Gaussian's worst mean is 0.17 reference deviations off; the draws' own error is 0.005."""
    name = "eight_schools-eight_schools_noncentered"
    content = json.loads((shared_data / "posteriordb" / f"{name}.json").read_text())
    arguments = posteriors[name].arguments(content["data"])
    result = fit(posteriors[name].model, guide, arguments, seed=0, progress=False)
    draws = result.sample(40_000)
    for quantity, known in content["reference"].items():
        site, _, index = quantity.rstrip("]").partition("[")
        values = draws[site][..., int(index) - 1] if index else draws[site]
        assert abs(values.double().mean().item() - known["mean"]) < 0.1 * known["sd"], quantity
