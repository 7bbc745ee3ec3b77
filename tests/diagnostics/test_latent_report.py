"""The report of reconstruction, KL and active units adds up, on any model with latents."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import ELBO, fit
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE
from ppl_vi.networks import perceptron_encoder


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


OPTIONS = {"steps": 1, "optimizer": still, "seed": 0, "progress": False}


def network(x):
    unit = pyro.param("unit", torch.ones(()))
    return torch.stack([unit * x, 0 * x], 1), torch.ones(len(x), 2)


def two_units(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def test_a_linear_encoder_has_the_kl_and_the_units_that_it_should():
    """q(z_i) = Normal((x_i, 0), 1): KL x_i²/2 and 0, posterior means of variance var(x) and 0."""
    x = torch.randn(60)
    result = fit(two_units, EncoderGuide(network), x, batch_size=25, **OPTIONS)
    table = result.kl_report(num_samples=200)
    assert table.loc[("z", 0), "kl"] == pytest.approx((x**2 / 2).mean().item(), rel=1e-4)
    assert table.loc[("z", 1), "kl"] == pytest.approx(0.0, abs=1e-6)
    assert table.loc[("z", "all"), "kl"] == pytest.approx(table.loc[("z", 0), "kl"], rel=1e-4)
    # Its noise is one of 200 draws: four of its standard deviations.
    spread = 4 * (4 * x.var().item() / 200 / 60) ** 0.5
    assert table.loc[("z", 0), "mean_variance"] == pytest.approx(x.var().item(), abs=spread)
    assert table.loc[("z", 1), "mean_variance"] < 0.005
    assert table["active"].loc["z"].tolist() == [1, 1, 0]
    new = result.kl_report(2 + torch.zeros(4), num_samples=10)
    assert new.loc[("z", 0), "kl"] == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_of_one_row_are_counted(batch_size):
    """Row by row, and as the last batch of three and one: the variance is that of all four."""
    x = torch.tensor([0.0, 0.0, 0.0, 40.0])
    result = fit(two_units, EncoderGuide(network), x, batch_size=batch_size, **OPTIONS)
    table = result.kl_report(num_samples=400)
    assert table.loc[("z", 0), "mean_variance"] == pytest.approx(x.var().item(), rel=0.05)
    assert table["active"].loc["z"].tolist() == [1, 1, 0]
    alone = result.kl_report(x[:1], num_samples=10)
    assert alone["mean_variance"].isna().all()


def hierarchy(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(mean + label, width), obs=x)


@pytest.mark.parametrize("name", ["normal", "multivariate_normal"])
@pytest.mark.parametrize("batch_size", [None, 12])
def test_the_parts_add_up_to_the_elbo(name, batch_size):
    """Within 5 standard errors of both estimates."""
    x = torch.randn(30) + 1
    result = fit(hierarchy, name, x, batch_size=batch_size, steps=30, seed=0, progress=False)
    table = result.kl_report(num_samples=1_000).xs("all", level="dimension")
    total = 30 * table["reconstruction"].sum() - table["kl"].sum()
    error = result.elbo.standard_error * (1 + 1_000**-0.5)
    assert abs(total - result.elbo) < 5 * 2**0.5 * error
    latents = ["mean", "width"] if name == "normal" else ["mean, width"]
    assert list(table.index[table["kl"].notna()]) == latents
    assert table["active"].isna().all()  # units are of plates


def test_a_collapsed_posterior_is_said_in_the_result_and_in_the_report():
    x = torch.randint(2, (40, 6)).float()
    model, encoder = VAE((6,), 2, hidden=[4]), perceptron_encoder((6,), 2, [4])
    options = {"steps": 150, "seed": 0, "progress": False, "objective": ELBO(1)}
    result = fit(model, EncoderGuide(encoder), x, kl_schedule=100.0, **options)
    assert any("'z'" in line and "collapsed" in line for line in result.remarks)
    with pytest.warns(UserWarning, match="collapsed onto the prior"):
        result.kl_report(num_samples=10)


def test_a_posterior_that_says_something_is_not_remarked_on():
    x = 3 * torch.randn(40)
    model = lambda x: local(x)  # noqa: E731
    result = fit(model, "normal", x, steps=150, seed=0, progress=False)
    assert result.remarks == ()


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)
