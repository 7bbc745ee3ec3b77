"""K-hat on known cases, reweighted draws, and leave-one-out.

Checks against exact numbers stand at 4.5 standard errors, a false alarm in 150,000. The k-hats are of
fixed seeds: over seeds those of 10,000 draws have a standard deviation of 0.1 in the worst case here.
"""

import math
import pickle
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import GuideError, ModelError, fit
from ppl_vi.diagnostics.pareto import KHat, smoothed
from ppl_vi.models import BayesianGMM
from ppl_vi.questions.singles import singles
from ppl_vi.questions.weighing import Weighing

DRAWS = 10_000


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def fixed(model, guide, data=None, **options):
    def with_parameter(*args):
        pyro.param("unused", torch.tensor(0.0))
        guide(*args)

    options = {"optimizer": still, "steps": 1, "progress": False, "seed": 0} | options
    return fit(model, with_parameter, data, **options)


def one_mean(x):
    mean = pyro.sample("mean", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.5), obs=x)


def exact(x, shift=0.0, ratio=1.0):
    precision = 1 / 4 + len(x) / 2.25
    mean, sd = (0.5 / 4 + x.sum() / 2.25) / precision, precision**-0.5

    def guide(x):
        pyro.sample("mean", dist.Normal(mean + shift * sd, ratio * sd))

    return guide


def correlated(rho, size):
    covariance = torch.full((size, size), rho) + (1 - rho) * torch.eye(size)

    def model():
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(size), covariance))

    precision = torch.linalg.inv(covariance).diagonal()

    def mean_field():
        pyro.sample("z", dist.Normal(torch.zeros(size), precision**-0.5).to_event(1))

    return model, mean_field


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def amortized(scale):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return guide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_constant_weights_are_minus_infinity_in_words(dtype, batch_size, offset):
    torch.set_default_dtype(dtype)
    x = torch.randn(50) + offset
    khat = fixed(one_mean, exact(x), x, batch_size=batch_size).khat(DRAWS)
    assert khat == -math.inf and khat.usable
    assert khat.effective_draws == pytest.approx(DRAWS, rel=1e-3)
    assert str(khat) == (
        "minus infinity (all weights are equal, so the guide is the posterior, as far as these draws "
        "tell)"
    )


@pytest.mark.parametrize("shape", [0.1, 0.7])
def test_the_standard_error_is_how_far_it_moves(shape):
    """The standard deviation of 60 values is within 30 % of theirs, but for one seed in a thousand."""
    log_w = shape * torch.distributions.Exponential(1.0).sample((4_000, 60))
    found = [KHat.of(column) for column in log_w.unbind(1)]
    errors = torch.tensor([khat.standard_error for khat in found])
    assert torch.tensor(found).std() == pytest.approx(errors.mean().item(), rel=0.3)


def test_a_khat_near_the_limit_says_so():
    def of(shape):
        return KHat.of(-shape * torch.log((torch.arange(4_000) + 0.5) / 4_000))

    near, light, heavy = (of(shape) for shape in (0.7, 0.2, 1.4))
    assert abs(near - 0.7) < near.standard_error < 0.2
    assert str(near).startswith(f"{float(near):.2f} ± {near.standard_error:.2f} (")
    assert "too near to 0.70 to be sure of either: khat(num_draws=40000)" in str(near)
    assert not light.doubt and not heavy.doubt


def test_weights_of_a_few_values_have_no_tail():
    def model():
        pyro.sample("z", dist.Bernoulli(0.3))

    def guide():
        pyro.sample("z", dist.Bernoulli(0.5))

    khat = fixed(model, guide).khat(DRAWS)
    assert khat == -math.inf and khat.effective_draws < 0.95 * DRAWS
    assert "none stands out" in khat.words


def test_a_guide_that_is_nearly_the_posterior():
    x = torch.randn(50)
    khat = fixed(one_mean, exact(x, shift=0.1, ratio=1.05), x).khat(DRAWS)
    assert -math.inf < khat < 0.5 and khat.usable and not khat.remedy


def test_a_mean_field_guide_of_a_correlated_gaussian():
    khat = fixed(*correlated(0.99, 10)).khat(DRAWS)
    assert khat > 0.7 and not khat.usable
    assert all(word in str(khat) for word in ("multivariate_normal", "flow", "NUTS"))


def test_a_mean_field_guide_of_eight_schools():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y, sigma):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def guide(y, sigma):  # where a fit of 3,000 steps ends
        pyro.sample("mu", dist.Normal(4.3, 1.9))
        pyro.sample("tau", dist.LogNormal(1.8, 0.2))
        loc = torch.tensor([7.3, 5.1, 3.5, 4.8, 2.7, 3.6, 7.6, 5.0])
        with pyro.plate("schools", 8):
            pyro.sample("theta", dist.Normal(loc, 5.1))

    assert fixed(model, guide, (y, sigma)).khat(DRAWS) > 0.7


@pytest.mark.parametrize("shift", [0.3, 1.5])
def test_it_is_arvizs_on_the_same_weights(shift):
    x = torch.randn(20)
    result = fixed(one_mean, exact(x, shift, 0.8), x)
    pyro.set_rng_seed(3)
    khat = result.khat(DRAWS)
    pyro.set_rng_seed(3)
    with result.fitted.applied():
        weighing = Weighing(result.job.weighted_pairs, frozenset())
        (drawn,) = singles(weighing, DRAWS)
        z = drawn.values["mean"]
        model = dist.Normal(0.5, 2.0).log_prob(z) + dist.Normal(z[:, None], 1.5).log_prob(x).sum(1)
        guide = (
            pyro.poutine.trace(exact(x, shift, 0.8)).get_trace(x).nodes["mean"]["fn"].log_prob(z)
        )
    torch.testing.assert_close(drawn.log_w, model - guide)
    weights, k = az.psislw((model - guide).numpy())
    assert float(khat) == pytest.approx(float(k), abs=1e-9)
    np.testing.assert_allclose(khat.log_weights.numpy(), weights, atol=1e-9)


def test_sets_of_weights_side_by_side():
    log_w = torch.randn(1_000, 3) * torch.tensor([0.0, 1.0, 3.0])
    weights, k = smoothed(log_w)
    assert k[0] == -math.inf and k[1] < k[2]
    torch.testing.assert_close(weights.exp().sum(0), torch.ones(3))
    assert torch.isnan(smoothed(torch.randn(10))[1])
    with pytest.raises(FloatingPointError, match="not a finite number"):
        smoothed(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize("guide", ["cavi", pytest.param("normal", marks=pytest.mark.slow)])
def test_discrete_latents_are_summed_out(guide):
    data = torch.cat([torch.randn(20, 2) - 4, torch.randn(20, 2) + 4])
    model = BayesianGMM(2, sigma=1.0, tau=5.0, pi="dirichlet")
    result = fit(model, guide, data, steps=200, compile=False, seed=0, progress=False)
    assert result.khat(1_000).effective_draws > 800
    draws = result.sample(50, reweight=True)
    assert draws["z"].shape == (50, 40) and draws["mu"].shape == (50, 2, 2)
    assert torch.equal(draws["z"][:, 0], draws["z"][:, 1])  # the components are far apart


@pytest.mark.parametrize("batch_size", [None, 50])
def test_rows_that_nothing_ties_have_weights_of_their_own(batch_size):
    x = torch.linspace(-2.0, 2.0, 200)
    close = fixed(local, amortized(0.5**0.5), x, batch_size=batch_size).khat(1_000)
    assert close == -math.inf
    assert len(close.pointwise) == (200 if batch_size is None else 100)
    narrow = fixed(local, amortized(0.2), x, batch_size=batch_size).khat(1_000)
    assert narrow > 0.7 and "rows" in narrow.words
    assert float(narrow) == narrow.pointwise.max().item()


def test_it_survives_pickling():
    khat = KHat.of(torch.randn(1_000))
    again = pickle.loads(pickle.dumps(khat))
    assert str(again) == str(khat) and torch.equal(again.log_weights, khat.log_weights)


def test_reweighted_draws_are_the_posteriors():
    x = torch.randn(20)
    result = fixed(one_mean, exact(x, shift=0.5, ratio=1.2), x)
    draws = result.sample(DRAWS, reweight=True)
    posterior = pyro.poutine.trace(exact(x)).get_trace(x).nodes["mean"]["fn"]
    error = posterior.scale.item() / draws.khat.effective_draws**0.5
    assert abs(draws["mean"].mean() - posterior.loc).item() < 4.5 * error
    assert abs(draws["mean"].std() - posterior.scale).item() < 4.5 * error
    assert draws.num_proposals == DRAWS and draws.num_distinct < DRAWS and draws.khat.usable
    table = result.summary(4_000, reweight=True)
    assert table.loc["mean", "mean"] == pytest.approx(posterior.loc.item(), abs=5 * error)


def test_reweighted_rows_are_each_the_posteriors():
    x = torch.linspace(-2.0, 2.0, 30)
    draws = fixed(local, amortized(0.9), x).sample(DRAWS, reweight=True)
    error = 0.5**0.5 / (0.7 * DRAWS) ** 0.5
    assert (draws["z"].mean(0) - x / 2).abs().max() < 4.5 * error
    assert (draws["z"].std(0) - 0.5**0.5).abs().max() < 4.5 * error
    assert torch.corrcoef(draws["z"].T)[0, 1].abs() < 4.5 / DRAWS**0.5


def test_a_guide_that_is_too_far_is_told():
    result = fixed(*correlated(0.99, 10))
    with pytest.warns(UserWarning, match=r"reweight: these are .* k-hat is 0\.9|1\.") as caught:
        result.sample(100, reweight=True)
    assert caught[0].filename == __file__


def test_what_cannot_be_weighed_is_refused():
    x = torch.randn(20)
    with pytest.raises(GuideError, match="holds it at a point"):
        fit(one_mean, "delta", x, steps=5, progress=False).khat()
    with pytest.raises(ValueError, match="num_draws must be an integer of 25 or more, not 3"):
        fixed(one_mean, exact(x), x).khat(3)

    def by_itself(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    with pytest.raises(ModelError, match="batch_size"):
        fixed(by_itself, exact(x), x).khat()


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, noise), obs=y)


def regression_data():
    x = torch.stack([torch.ones(40), torch.linspace(-2.0, 2.0, 40)], 1)
    return x, x @ torch.tensor([1.0, 0.5]) + 0.3 * torch.randn(40)


def test_loo_of_a_known_mean_is_exact():
    """Each p(x_i | rest) is a Normal in closed form."""
    x = torch.randn(30)
    elpd = fixed(one_mean, exact(x, shift=0.3, ratio=1.1), x).loo(num_draws=DRAWS)
    expected = []
    for i in range(len(x)):
        rest = torch.cat([x[:i], x[i + 1 :]])
        posterior = pyro.poutine.trace(exact(rest)).get_trace(rest).nodes["mean"]["fn"]
        predictive = dist.Normal(posterior.loc, (posterior.scale**2 + 1.5**2) ** 0.5)
        expected.append(predictive.log_prob(x[i]).item())
    np.testing.assert_allclose(elpd["loo_i"].values, expected, atol=0.01)
    assert elpd["elpd_loo"] == pytest.approx(sum(expected), abs=0.05)
    assert elpd["loo_i"].dims == ("data",) and not elpd["warning"]


def test_loo_corrects_the_guide_and_compares():
    x = torch.randn(30)
    result = fixed(one_mean, exact(x, shift=1.0), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ sorts in a way that pandas 3.1 gives up
        elpd, plain = result.loo(), az.loo(result.to_arviz(), pointwise=True)
        ranked = az.compare({"corrected": elpd, "plain": plain})
    assert set(ranked.index) == {"corrected", "plain"} and "elpd_loo" in str(elpd)
    assert elpd["elpd_loo"] > plain["elpd_loo"]  # the guide's draws are off


@pytest.mark.slow
def test_loo_is_that_of_nuts():
    from pyro.infer import MCMC, NUTS

    x, y = regression_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        elpd = fit(regression, "normal", (x, y), steps=3_000, seed=0, progress=False).loo()
        chain = MCMC(NUTS(regression), num_samples=1_000, warmup_steps=300, disable_progbar=True)
        chain.run(x, y)
        drawn = chain.get_samples(group_by_chain=True)
        noise = dist.Normal(drawn["weights"] @ x.T, drawn["noise"][..., None])
        likelihood = {"y": noise.log_prob(y).numpy()}
        posterior = {name: value.numpy() for name, value in drawn.items()}
        exact_elpd = az.loo(az.from_dict(posterior=posterior, log_likelihood=likelihood))
    assert abs(elpd["elpd_loo"] - exact_elpd["elpd_loo"]) < exact_elpd["se"]
    assert elpd["p_loo"] == pytest.approx(exact_elpd["p_loo"], abs=0.5)


def test_loo_of_several_sites_needs_a_name():
    def model(x, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    result = fit(model, data=(torch.zeros(5), torch.ones(5)), steps=20, progress=False)
    with pytest.raises(ValueError, match="observed sites are 'x', 'y'"):
        result.loo()
    assert result.loo("y", 100)["n_data_points"] == 5
    with pytest.raises(ValueError, match="'w' is not one of the observed sites"):
        result.loo("w")


def test_loo_of_a_guide_with_lighter_tails_alone_is_silent():
    """A Gaussian in the logarithm of a scale; warnings are errors here."""
    torch.manual_seed(0)
    x = torch.randn(60) * 0.5

    def spread(x):
        width = pyro.sample("width", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, width), obs=x)

    elpd = fit(spread, "normal", x, steps=300, seed=0, progress=False).loo()
    assert (elpd["pareto_k"] > elpd["good_k"]).any() and not elpd["warning"]
