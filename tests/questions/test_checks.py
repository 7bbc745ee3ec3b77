"""What a fitted model cannot be asked."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_answers import (
    NEW,
    ROWS,
    TARGET,
    TOSSES,
    X,
    at,
    coin,
    exact_encoder,
    factors,
    fixed,
    logit_normal,
    one_mean,
    posterior,
)

from ppl_vi import DataError, GuideError, ModelError, fit


def test_what_cannot_be_asked():
    result = posterior()
    cases = [
        (lambda: result.log_evidence(0), ValueError, "num_particles must be a positive integer"),
        (lambda: result.marginal("slope"), ValueError, r"site 'slope' is not one of the latents"),
        (lambda: result.marginal([]), ValueError, "no site is named"),
        (lambda: result.conditional({"slope": 1.0}), ValueError, "'slope' is not one of the sites"),
        (lambda: result.conditional({"last": [1.0, 2.0]}), ValueError, r"has shape \(2,\), but"),
        (lambda: result.conditional({"y": TARGET}), ValueError, "'y' is data already"),
        (lambda: result.conditional({"last": None}), ValueError, "'last' is latent already"),
        (
            lambda: result.conditional({"last": 1.0, "slopes": [0.0, 0.0]}),
            ValueError,
            "every latent of the model has a value",
        ),
        (
            lambda: result.marginal("last").log_prob({"last": torch.zeros(2), "slopes": X}),
            ValueError,
            "site 'slopes' is not one of the sites of the marginal",
        ),
        (
            lambda: result.marginal("last").log_prob({}),
            ValueError,
            "site 'last' has no value",
        ),
    ]
    for ask, error, message in cases:
        with pytest.raises(error, match=message):
            ask()


def test_values_outside_the_support():
    result = fixed(coin(2.0, 3.0), logit_normal, TOSSES)
    with pytest.raises(ValueError, match="'p' lies outside its support"):
        result.marginal("p").log_prob({"p": torch.tensor([0.5, 1.5])})
    two = fixed(
        lambda x: (coin(2.0, 3.0)(x), pyro.sample("q", dist.Normal(0.0, 1.0))),
        lambda x: (logit_normal(x), pyro.sample("q", dist.Normal(0.0, 1.0))),
        TOSSES,
    )
    with pytest.raises(ValueError, match="'p' lies outside its support"):
        two.conditional({"p": 1.5})
    with pytest.raises(DataError, match="outside the support"):
        result.log_evidence(10, data=torch.tensor([2.0]))


def test_points_rows_and_subsamples():
    point = fixed(one_mean, lambda x: pyro.sample("mean", dist.Delta(torch.tensor(0.1))), X)
    with pytest.raises(GuideError, match="site 'mean': the guide holds it at a point"):
        point.log_evidence(10)
    # New rows at a point: what a plug-in estimate predicts.
    new = point.log_evidence(3, data=NEW)
    assert new == pytest.approx(dist.Normal(0.1, 1.5).log_prob(NEW).sum().item(), abs=1e-9)
    batches = fixed(factors, exact_encoder, ROWS, batch_size=4)
    with pytest.raises(ValueError, match="'z' stands in the plate of minibatches"):
        batches.conditional({"z": torch.zeros(9, 2)})

    def subsampling(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    told = "plate 'data' has 2 of 5 elements, .* but {} needs all of them"
    with pytest.raises(ModelError, match=told.format("a log evidence")):
        fixed(subsampling, at(0.0, 1.0), X).log_evidence(10)
    with pytest.raises(ModelError, match=told.format("a mode")):
        fixed(subsampling, at(0.0, 1.0), X).mode()
    with pytest.raises(ModelError, match=told.format("the guide 'laplace'")):
        fit(subsampling, "laplace", X, steps=1, progress=False)
