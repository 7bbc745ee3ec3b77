"""Where guides start: badly scaled, correlated, flat and pathological posteriors, unattended."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from ppl_vi import fit
from ppl_vi.guides import LaplaceGuide
from ppl_vi.starts import Whitening

QUICK = {"steps": 200, "seed": 0, "progress": False}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def regression(x, y, noise):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), (x.shape[1],)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x @ beta.unsqueeze(-1)).squeeze(-1), noise), obs=y)


def problem(scales, noise, offset=0.0, n=1_000):
    """Data, and the exact mean and covariance under a flat prior."""
    generator = torch.Generator().manual_seed(2)
    size = torch.tensor(scales, dtype=torch.float64)
    x = (offset + torch.randn(n, len(size), generator=generator, dtype=torch.float64)) * size
    truth = torch.linspace(-2, 3, len(size), dtype=torch.float64) * (100 / size)
    y = x @ truth + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    covariance = noise**2 * torch.linalg.inv(x.mT @ x)
    return x, y, torch.linalg.lstsq(x, y).solution, covariance


def gaussian_of(guide):
    """The mean and the covariance in unconstrained space, exactly."""
    factor = guide.factor.detach() @ guide._root().detach()
    return guide.unwhitened(guide.loc).detach().double(), (factor @ factor.mT).double()


CASES = {
    "size 100, deviations 0.001": ([100.0] * 4, 3.16, 0.0),
    "far from zero, so correlated": ([100.0] * 4, 3.16, 30.0),
    "sizes from 0.001 to 1,000,000": ([1e-3, 1.0, 1e3, 1e6], 3.16, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_badly_scaled_regressions_are_exact_unattended(float64, name):
    x, y, mean, covariance = problem(*CASES[name])
    result = fit(regression, "multivariate_normal", (x, y, CASES[name][1]), **QUICK)
    found, spread = gaussian_of(result.guide)
    deviations = covariance.diagonal().sqrt()
    assert ((found - mean).abs() / deviations).max() < 0.1
    torch.testing.assert_close(spread.diagonal().sqrt(), deviations, rtol=0.1, atol=0)


def test_single_precision_and_sizes_of_a_million():
    x, y, mean, covariance = problem([1e3, 1e6, 1e4, 1e5], 3.16)
    result = fit(regression, "multivariate_normal", (x.float(), y.float(), 3.16), **QUICK)
    found, spread = gaussian_of(result.guide)
    deviations = covariance.diagonal().sqrt()
    assert ((found - mean).abs() / deviations).max() < 0.2
    torch.testing.assert_close(spread.diagonal().sqrt(), deviations, rtol=0.1, atol=0)


def test_mean_field_has_its_own_optimum_on_a_correlated_posterior(float64):
    x, y, mean, covariance = problem([100.0] * 3, 3.16, 3.0)
    guide = fit(regression, "normal", (x, y, 3.16), **QUICK).guide
    location, width = guide._own("beta")
    conditional = torch.linalg.inv(covariance).diagonal().rsqrt()
    assert ((location - mean).abs() / conditional).max() < 1.0
    torch.testing.assert_close(width.detach(), conditional, rtol=0.1, atol=0)


def centered(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.parametrize(
    "guide", ["normal", pytest.param("multivariate_normal", marks=pytest.mark.slow)]
)
def test_a_spike_without_mass_is_no_start(float64, guide):
    """The joint density of this model has no mode: it rises without end as tau falls to 0."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    result = fit(centered, guide, (y, sigma), **{**QUICK, "steps": 1})
    assert 0.3 < result.guide.median(y, sigma)["tau"] < 20
    assert result.elbo > -38


def test_parameters_of_the_model_and_its_labels(float64):
    """Labels are summed out, and the parameter is not moved by the search, only by the fit."""
    y = torch.cat([5e4 + 100 * torch.randn(60), -1e4 + 100 * torch.randn(90)])

    def model(y):
        width = pyro.param("width", torch.tensor(150.0), constraint=constraints.positive)
        with pyro.plate("components", 2):
            mean = pyro.sample("mean", dist.Normal(0.0, 1e5))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Normal(mean[z], width), obs=y)

    model.initial_values = lambda y: {"mean": torch.tensor([4.9e4, -0.9e4])}
    result = fit(model, "multivariate_normal", y, optimizer=_still, **{**QUICK, "steps": 1})
    torch.testing.assert_close(result.params["width"], torch.tensor(150.0))
    torch.testing.assert_close(result.guide.median(y)["mean"], torch.tensor([4.9e4, -0.9e4]))
    widths = result.guide.factor.diagonal()
    torch.testing.assert_close(widths, 150 / torch.tensor([60.0, 90.0]).sqrt(), rtol=0.05, atol=0)


def _still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def counts(x):
    rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_laplace_is_exact(float64, batch_size):
    """In log space the density of Gamma(a, b) is exp(a u - b e^u): mode log(a / b), curvature a."""
    x = torch.tensor([4.0, 6.0, 2.0, 9.0])
    result = fit(counts, "laplace", x, batch_size=batch_size, **{**QUICK, "steps": 20})
    a, b = 3.0 + x.sum(), 1.0 + len(x)
    torch.testing.assert_close(result.guide.median(x)["rate"], a / b)
    draws = result.sample(20_000)["rate"].log()
    assert abs(draws.std() * a.sqrt() - 1) < 4 / (2 * 20_000) ** 0.5  # p = 6e-5
    assert abs(draws.mean() - (a / b).log()) < 4 * draws.std() / 20_000**0.5


def test_laplace_with_flat_priors(float64):
    """Such a prior has no draw to start at; with it the posterior of b is exactly Gaussian."""
    x, noise = torch.linspace(-1, 1, 20), torch.sin(7.0 * torch.arange(20))

    def line(y):
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(b[..., :1] + b[..., 1:] * x, 1.0), obs=y)

    result = fit(line, "laplace", 2 * x + noise, **{**QUICK, "steps": 20})
    rows = torch.stack([torch.ones(20), x], 1)
    exact = torch.linalg.lstsq(rows, (2 * x + noise)[:, None]).solution[:, 0]
    torch.testing.assert_close(result.guide.median()["b"], exact, rtol=1e-8, atol=1e-8)


def test_laplace_says_so_where_there_is_no_mode(float64):
    def funnel():
        log_scale = pyro.sample("log_scale", dist.Normal(0.0, 3.0))
        with pyro.plate("many", 3):
            pyro.sample("x", dist.Cauchy(0.0, log_scale.exp()))
        pyro.factor("no_prior", log_scale**2 / 18)

    with pytest.raises(ValueError, match=r"'laplace' found no mode.*multivariate_normal"):
        fit(funnel, LaplaceGuide, **{**QUICK, "steps": 5})


def test_maximum_a_posteriori_is_exact(float64):
    x = torch.tensor([4.0, 6.0, 2.0, 9.0])
    result = fit(counts, "delta", x, **{**QUICK, "steps": 500})
    mode = (3.0 + x.sum() - 1) / (1.0 + len(x))
    torch.testing.assert_close(result.guide.median(x)["rate"], mode, rtol=1e-4, atol=0)


def test_a_marginal_of_a_whitening():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 5, generator=generator, dtype=torch.float64).tril()
    factor.diagonal().abs_()
    whitening = Whitening({"a": 2, "b": 1, "c": 2}, torch.arange(5.0).double(), factor)
    marginal, places = whitening.of(("c", "a")), torch.tensor([3, 4, 0, 1])
    assert marginal.location.tolist() == [3, 4, 0, 1] and list(marginal.sizes) == ["c", "a"]
    expected = (factor @ factor.mT)[places][:, places]
    torch.testing.assert_close(marginal.factor @ marginal.factor.mT, expected)
    assert torch.equal(marginal.factor, marginal.factor.tril())
    assert (marginal.factor.diagonal() > 0).all()
    precision = torch.linalg.inv(factor @ factor.mT).diagonal()
    torch.testing.assert_close(whitening.widths(), precision.rsqrt())
