"""What a result answers: draws, predictions, log-likelihoods, ArviZ data, and an exact ELBO."""

import math

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import integrate, stats

from ppl_vi import Estimate, StopReason, fit

X = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0])


def still(parameters):
    """An optimizer that moves nothing: the guide stays as it is written."""
    return torch.optim.SGD(parameters, lr=0.0)


def fixed(model, guide, data, **options):
    return fit(model, guide, data, optimizer=still, steps=1, progress=False, **options)


# What can be known exactly: log p(x) = ELBO + KL(q || p(. | x)).


def problem(prior, likelihood, data):
    def model(x):
        z = pyro.sample("z", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(z), obs=x)

    return model, data


NORMAL = problem(dist.Normal(0.5, 2.0), lambda z: dist.Normal(z, 1.5), X)
BETA = problem(dist.Beta(2.0, 3.0), dist.Bernoulli, torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]))
GAMMA = problem(dist.Gamma(2.0, 1.5), dist.Poisson, torch.tensor([2.0, 0.0, 3.0, 1.0]))

PRECISION = 1 / 4 + len(X) / 2.25
POSTERIORS = {
    "normal": stats.norm((0.5 / 4 + X.sum().item() / 2.25) / PRECISION, PRECISION**-0.5),
    "beta": stats.beta(5, 5),
    "gamma": stats.gamma(8, scale=1 / 5.5),
}
MODELS = {"normal": NORMAL, "beta": BETA, "gamma": GAMMA}


def log_evidence(name):
    """log p(z) + log p(x | z) - log p(z | x), the same at every z."""
    model, data = MODELS[name]
    z = torch.tensor(0.4)
    trace = pyro.poutine.trace(pyro.condition(model, {"z": z})).get_trace(data)
    return trace.log_prob_sum().item() - POSTERIORS[name].logpdf(0.4)


def logit_normal(loc, scale):
    return dist.TransformedDistribution(
        dist.Normal(loc, scale), [torch.distributions.transforms.SigmoidTransform()]
    )


def normal_pdf(u, loc, scale):
    return stats.norm.pdf(u, loc, scale)


GUIDES = {
    "exact normal": ("normal", lambda: dist.Normal(*map(float, (POSTERIORS["normal"].args)))),
    "narrow normal": ("normal", lambda: dist.Normal(0.0, 0.3)),
    "wide normal": ("normal", lambda: dist.Normal(1.0, 1.2)),
    "exact beta": ("beta", lambda: dist.Beta(5.0, 5.0)),
    "another beta": ("beta", lambda: dist.Beta(3.0, 2.0)),
    "logit-normal": ("beta", lambda: logit_normal(0.3, 0.8)),
    "exact gamma": ("gamma", lambda: dist.Gamma(8.0, 5.5)),
    "another gamma": ("gamma", lambda: dist.Gamma(4.0, 4.0)),
    "log-normal": ("gamma", lambda: dist.LogNormal(0.2, 0.5)),
}


def divergence(q, posterior):
    """KL(q || p) by quadrature over the middle of q."""
    lower, upper = q.icdf(torch.tensor(1e-7)).item(), q.icdf(torch.tensor(1 - 1e-6)).item()

    def integrand(z):
        log_q = q.log_prob(torch.tensor(z, dtype=torch.float64)).item()
        return math.exp(log_q) * (log_q - posterior.logpdf(z))

    return integrate.quad(integrand, lower, upper, limit=200)[0]


SCIPY = {"Beta": lambda q: stats.beta(q.concentration1.item(), q.concentration0.item()),
         "Gamma": lambda q: stats.gamma(q.concentration.item(), scale=1 / q.rate.item())}  # fmt: skip


@pytest.mark.parametrize("name", GUIDES)
def test_log_evidence_is_elbo_plus_divergence(name):
    family, make = GUIDES[name]
    model, data = MODELS[family]
    q, posterior = make(), POSTERIORS[family]

    def guide(x):
        pyro.param("unused", torch.tensor(0.0))
        pyro.sample("z", q)

    result = fixed(model, guide, data)
    if type(q).__name__ in SCIPY:
        own = SCIPY[type(q).__name__](q)
        gap = own.expect(lambda z: own.logpdf(z) - posterior.logpdf(z))
    else:
        gap = divergence(q, posterior)
    error = 4.5 * result.elbo.standard_error + 2e-4
    assert abs(result.elbo + gap - log_evidence(family)) < error
    assert result.bound == result.elbo
    if name.startswith("exact"):
        assert gap < 1e-6 and result.elbo.standard_error < 1e-4


def test_the_standard_error_is_the_spread_of_the_estimate():
    """log w = c + b z - a z² under q: its variance is b² s² + 2 a² s⁴, from 1,000 draws."""
    model, data = NORMAL

    def guide(x):
        pyro.param("unused", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(0.0, 1.5))

    elbo = fixed(model, guide, data).elbo
    b, a = 0.5 / 4 + X.sum().item() / 2.25, (PRECISION - 1 / 1.5**2) / 2
    variance = b**2 * 1.5**2 + 2 * a**2 * 1.5**4
    # A quadratic in a Normal has a kurtosis of at most 15.
    assert abs(elbo.standard_error / (variance / 1_000) ** 0.5 - 1) < 4.5 * (14 / 4_000) ** 0.5


def test_the_elbo_of_a_model_that_subsamples_by_itself():
    """Its rows are drawn anew for each draw, so that mean and error are those over all rows."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        pyro.sample("z", dist.Delta(pyro.param("loc", torch.tensor(0.2))))

    x = torch.linspace(-3, 3, 100)
    exact = dist.Normal(0.2, 1.0).log_prob(x).sum() + dist.Normal(0.0, 1.0).log_prob(
        torch.tensor(0.2)
    )
    elbo = fixed(model, guide, x).elbo
    assert elbo.standard_error > 0.1
    assert abs(elbo - exact) < 4.5 * elbo.standard_error


# Draws.


def everything(x):
    """Latents in and out of plates, a summed-out label, and values computed from them."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(torch.tensor([-2.0, 2.0]), 0.5))
        pyro.deterministic("doubled", 2 * mean)
    pyro.deterministic("gap", mean[..., 1] - mean[..., 0])
    with pyro.plate("groups", 3, dim=-2):
        pyro.sample("effect", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.deterministic("center", mean[z])
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


@pytest.fixture(scope="module")
def result():
    pyro.clear_param_store()
    return fit(everything, "normal", X, steps=100, seed=0, progress=False)


def test_draws_have_plates_and_events_and_nothing_else(result):
    draws = result.sample(50)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "weights": (50, 2),
        "mean": (50, 2),
        "doubled": (50, 2),
        "gap": (50,),
        "effect": (50, 3, 4),
        "z": (50, 5),
        "center": (50, 5),
    }
    torch.testing.assert_close(draws["doubled"], 2 * draws["mean"])
    torch.testing.assert_close(draws["gap"], draws["mean"][:, 1] - draws["mean"][:, 0])
    torch.testing.assert_close(draws["center"], draws["mean"].gather(1, draws["z"]))
    assert not any(value.requires_grad for value in draws.values())


def test_labels_come_from_their_exact_conditional(result):
    """p(z_i = 1 | weights, mean, x_i), averaged over the draws."""
    draws = result.sample(4_000)
    log_joint = draws["weights"].log().unsqueeze(1) + dist.Normal(
        draws["mean"].unsqueeze(1), 1.0
    ).log_prob(X.unsqueeze(-1))
    exact = log_joint.softmax(-1)[..., 1]
    error = (exact * (1 - exact)).mean(0).div(4_000).sqrt()
    assert ((draws["z"].double().mean(0) - exact.mean(0)).abs() < 4.5 * error).all()


def test_log_likelihood_sums_labels_out(result):
    pyro.set_rng_seed(1)
    draws = result.sample(30)
    pyro.set_rng_seed(1)
    found = result.log_likelihood(30)["x"]
    log_joint = draws["weights"].log().unsqueeze(1) + dist.Normal(
        draws["mean"].unsqueeze(1), 1.0
    ).log_prob(X.unsqueeze(-1))
    torch.testing.assert_close(found, log_joint.logsumexp(-1))


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)


def regression_guide(x, y=None):
    loc = pyro.param("loc", torch.tensor([1.0, -2.0]))
    pyro.sample("slope", dist.Normal(loc, 0.1).to_event(1))


@pytest.mark.parametrize("form", [torch.as_tensor, np.asarray, pd.DataFrame])
def test_predictions_at_new_inputs(form):
    """Mean x' loc and variance 0.1² |x|² + 0.5², at one new row and at more than in training."""
    x, y = torch.randn(6, 2), torch.randn(6)
    result = fixed(regression, regression_guide, {"x": x, "y": y})
    for new in (torch.tensor([[1.0, 2.0]]), 3 * torch.randn(9, 2)):
        y = result.predict(form(new.numpy()), num_samples=4_000)["y"]
        assert y.shape == (4_000, len(new))
        mean, variance = new @ torch.tensor([1.0, -2.0]), 0.01 * new.square().sum(-1) + 0.25
        assert ((y.mean(0) - mean).abs() < 4.5 * (variance / 4_000).sqrt()).all()
        assert ((y.var(0) / variance - 1).abs() < 4.5 * (2 / 4_000) ** 0.5).all()
    assert result.predict(x=new, num_samples=2)["y"].shape == (2, 9)
    assert result.predict(new, torch.zeros(9), num_samples=2)["y"].std() > 0


def test_predictions_replicate_the_training_data(result):
    replicated = result.predict(num_samples=300)["x"]
    assert replicated.shape == (300, 5)
    # A replicate is given its own row's label: rows far apart are told apart.
    assert replicated[:, 3].mean() - replicated[:, 1].mean() > 1.5


def test_predictions_of_new_rows_draw_new_local_latents(result):
    new = result.predict(torch.zeros(2_000), num_samples=50)["x"]
    assert new.shape == (50, 2_000)
    assert (new < 0).any(1).all() and (new > 0).any(1).all()


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("method", ["sample", "log_likelihood", "to_arviz", "summary"])
def test_the_number_of_draws_is_a_positive_integer(result, method, count):
    with pytest.raises(ValueError, match=r"num_samples.*positive integer"):
        getattr(result, method)(count)


def test_one_row_keeps_its_plate():
    result = fit(everything, "normal", X[:1], steps=2, progress=False)
    assert result.sample(3)["z"].shape == (3, 1)
    assert result.log_likelihood(3)["x"].shape == (3, 1)
    assert result.to_arviz(3)["log_likelihood"]["x"].shape == (1, 3, 1)


def test_log_likelihood_under_a_label_of_all_rows_is_given_the_label():
    """Summed out, the label would tie the rows, which then have no likelihoods of their own."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + 3 * z, 1.0), obs=x)

    result = fit(model, "normal", X, steps=2, progress=False)
    pyro.set_rng_seed(2)
    draws = result.sample(9)
    pyro.set_rng_seed(2)
    exact = dist.Normal((draws["mean"] + 3 * draws["z"]).unsqueeze(-1), 1.0).log_prob(X)
    torch.testing.assert_close(result.log_likelihood(9)["x"], exact)


def test_one_draw_keeps_its_dimension(result):
    assert result.sample(1)["gap"].shape == (1,)
    assert result.predict(num_samples=1)["x"].shape == (1, 5)


# ArviZ.


@pytest.fixture(scope="module")
def idata(result):
    return result.to_arviz(200)


def test_arviz_groups_and_dimensions(idata):
    posterior = idata["posterior"]
    dims = {name: variable.dims[2:] for name, variable in posterior.data_vars.items()}
    assert dims == {
        "weights": ("weights_dim_0",),
        "mean": ("components",),
        "doubled": ("components",),
        "gap": (),
        "effect": ("groups", "effect_dim_0"),
        "z": ("data",),
        "center": ("data",),
    }
    assert posterior.sizes["chain"] == 1 and posterior.sizes["draw"] == 200
    assert posterior["groups"].values.tolist() == [0, 1, 2]
    assert idata["posterior_predictive"]["x"].dims == ("chain", "draw", "data")
    assert idata["log_likelihood"]["x"].shape == (1, 200, 5)
    assert idata["observed_data"]["x"].dims == ("data",)
    np.testing.assert_allclose(idata["observed_data"]["x"].values, X)


@pytest.mark.filterwarnings("ignore:Shape validation failed:UserWarning")
def test_arviz_runs_on_it(idata):
    import matplotlib

    matplotlib.use("Agg")
    assert "mean[0]" in az.summary(idata, kind="stats").index
    loo = az.loo(idata)
    assert np.isfinite(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd)
    az.plot_forest(idata, var_names=["mean", "weights"])
    matplotlib.pyplot.close("all")


def test_arviz_data_survive_a_file(idata, tmp_path):
    path = str(tmp_path / "posterior.nc")
    idata.to_netcdf(path)
    back = az.from_netcdf(path)
    np.testing.assert_array_equal(back["posterior"]["z"], idata["posterior"]["z"])


def test_log_likelihood_and_posterior_are_the_same_draws(idata):
    """The pointwise log-likelihood of each draw can be computed from the posterior group."""
    mean, weights = (torch.tensor(idata["posterior"][n].values[0]) for n in ("mean", "weights"))
    log_joint = weights.log().unsqueeze(1) + dist.Normal(mean.unsqueeze(1), 1.0).log_prob(
        X.unsqueeze(-1)
    )
    np.testing.assert_allclose(
        idata["log_likelihood"]["x"].values[0], log_joint.logsumexp(-1), rtol=1e-4
    )


def test_summary_is_a_table_of_continuous_sites(result):
    table = result.summary(500)
    assert not any(word in column for column in table for word in ("hat", "ess", "mcse"))
    assert {"mean", "sd"} <= set(table.columns)
    assert "gap" in table.index and "mean[1]" in table.index
    assert not any(row.startswith("z") for row in table.index)


def test_a_site_with_the_name_of_a_plate_is_told_apart():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("x_plate", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    assert fit(model, data=X, steps=5, progress=False).to_arviz(5)["posterior"].sizes["draw"] == 5


# The rest.


def test_attributes(result):
    assert result.losses.shape == (100,) and not result.losses.requires_grad
    assert result.seconds > 0 and result.num_steps == 100
    assert result.params["NormalGuide.scales.mean"].min() > 0
    assert set(result.estimators) >= {"mean_unconstrained", "mean"}
    text = repr(result)
    assert "±" in text and "all the steps" in text and len(text) < 300


@pytest.mark.parametrize("reason", StopReason)
def test_stop_reasons_are_sentences(reason):
    assert len(str(reason).split()) > 3 and str(reason) == reason.value


def test_an_estimate_is_a_float():
    estimate = Estimate(-2.0, 0.5)
    assert estimate + 1 == -1.0 and type(estimate + 1) is float
    assert f"{estimate:.1f}" == "-2.0" and str(estimate) == "-2.000 ± 0.500"
    assert estimate < -1 and max(estimate, Estimate(-1.0)) == -1.0
    assert math.isclose(np.mean([estimate, estimate]), -2.0)


def mask_model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x > 0):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_masked_rows_count_for_nothing():
    result = fit(mask_model, "normal", X, steps=400, seed=0, progress=False)
    seen = X[X > 0]
    assert abs(result.sample(4_000)["mean"].mean() - seen.sum() / (len(seen) + 1)) < 0.05
    assert (result.log_likelihood(5)["x"][:, X <= 0] == 0).all()


def test_a_fit_without_latents_in_the_guide():
    """All latents summed out: what is left are the model's own parameters."""

    def model(x):
        mean = pyro.param("mean", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(mean[z.long()], 1.0), obs=x)

    result = fit(model, lambda x: None, X, steps=20, progress=False)
    assert result.elbo.standard_error == 0
    draws = result.sample(6)
    assert set(draws) == {"z"} and draws["z"].shape == (6, 5)
    assert result.predict(num_samples=3)["x"].shape == (3, 5)
    assert result.log_likelihood(3)["x"].shape == (3, 5)
    assert result.to_arviz(3)["posterior"]["z"].shape == (1, 3, 5)


def test_positive_guides_of_lognormals_keep_their_support():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
        pyro.sample("rate", dist.LogNormal(loc, scale))

    result = fit(model, guide, X.abs(), steps=20, progress=False)
    assert (result.sample(100)["rate"] > 0).all() and (result.predict(num_samples=9)["x"] > 0).all()
