"""Fits of Old Faithful against a long NUTS run; the explicit guide against the summed-out one."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vi import ScoreFunctionELBO, fit
from ppl_vi.guides import GMMGuide
from ppl_vi.models import BayesianGMM

NUTS = json.loads((Path(__file__).parents[1] / "references" / "faithful_nuts.json").read_text())
TOLERANCES = torch.tensor([0.1, 1.5])  # eruptions in minutes, waiting in minutes
MODEL = BayesianGMM(2, tau=50.0, pi="dirichlet", sigma="full")


@pytest.fixture(scope="module")
def faithful():
    with (resources.files("ppl_vi.datasets") / "faithful.csv").open() as file:
        return torch.tensor(np.loadtxt(file, delimiter=",", skiprows=1), dtype=torch.float32)


def reference(site, moment="mean"):
    return torch.tensor(NUTS["sites"][site][moment])


def check_against_nuts(result):
    draws = result.sample(2_000)
    assert ((draws["mu"].mean(0) - reference("mu")).abs() < TOLERANCES).all()
    assert (draws["pi"].mean(0) - reference("pi")).abs().max() < 0.03
    spread = draws["sigma"].mean(0) / reference("sigma")
    assert (spread - 1).abs().max() < 0.1
    factor = draws["correlation"]
    assert (factor[..., 1, 0].mean(0) - reference("correlation")).abs().max() < 0.1
    return draws


def check_widths(draws):
    """Posterior standard deviations are those of NUTS, where the guide can bend to them."""
    for site in ("mu", "pi", "sigma"):
        assert (draws[site].std(0) / reference(site, "sd") - 1).abs().max() < 0.2, site


def test_the_reference_converged():
    for site, moments in NUTS["sites"].items():
        assert np.max(moments["r_hat"]) < 1.01 and np.min(moments["ess"]) > 5_000, site


@pytest.mark.parametrize(
    "guide", [pytest.param("normal", marks=pytest.mark.slow), "multivariate_normal"]
)
def test_a_short_fit_finds_what_nuts_finds(faithful, guide):
    result = fit(MODEL, guide, faithful, steps=1_000, seed=0, progress=False)
    check_widths(check_against_nuts(result))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_a_fit_by_defaults_finds_what_nuts_finds(faithful, guide, seed):
    result = fit(MODEL, guide, faithful, seed=seed, progress=False)
    check_widths(check_against_nuts(result))


def three_clusters():
    torch.manual_seed(1)
    centers, widths = torch.tensor([-4.0, 0.0, 5.0]), torch.tensor([0.8, 0.6, 1.0])
    labels = torch.multinomial(torch.tensor([0.3, 0.3, 0.4]), 300, replacement=True)
    return centers[labels] + widths[labels] * torch.randn(300)


def mixtures(faithful):
    """A model and its data by name."""
    return {
        "eruptions": (BayesianGMM(2), faithful[:, 0]),
        "both": (BayesianGMM(2, pi="dirichlet", sigma="diagonal"), faithful),
        "three": (BayesianGMM(3, pi="dirichlet", sigma="spherical"), three_clusters()),
    }


def check_explicit(faithful, name, steps, seed):
    """Means by the score function against the fit with labels summed out, in data units."""
    model, data = mixtures(faithful)[name]
    summed_out = fit(model, "normal", data, steps=steps // 2, seed=seed, progress=False)
    guide, objective = GMMGuide(model), ScoreFunctionELBO()
    explicit = fit(model, guide, data, objective=objective, steps=steps, seed=seed, progress=False)
    means = [result.sample(2_000)["mu"].mean(0) for result in (summed_out, explicit)]
    distance = ((means[0] - means[1]).abs() / data.std(0)).max().item()
    assert distance < 0.1
    # Mean-field labels cannot beat exact ones.
    assert explicit.elbo < summed_out.elbo + 3 * explicit.elbo.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eruptions", "both", "three"])
def test_the_explicit_guide_finds_the_same_means(faithful, name):
    check_explicit(faithful, name, 1_500, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["eruptions", "both", "three"])
def test_the_explicit_guide_by_defaults_finds_the_same_means(faithful, name, seed):
    check_explicit(faithful, name, 10_000, seed)


def test_minibatches_find_what_nuts_finds(faithful):
    """Batches of 64 out of 272 rows, the last one of 16."""
    result = fit(MODEL, "normal", faithful, batch_size=64, steps=1_000, seed=0, progress=False)
    check_against_nuts(result)
