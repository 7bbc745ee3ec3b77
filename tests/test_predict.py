"""Predictions on rows of the fit and on new ones: what they are given, their shapes, their moments."""

import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import DataError, fit
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE, BayesianGMM, ConjugateGMM
from ppl_vi.networks import perceptron_encoder


def still(parameters):
    """An optimizer that moves nothing: the guide stays as it is written."""
    return torch.optim.SGD(parameters, lr=0.0)


def fixed(model, guide, data, **options):
    return fit(
        model, guide, data, optimizer=still, steps=1, progress=False, compile=False, **options
    )


def rows_model(x):
    """x_i = level + z_i + noise."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        pyro.sample("x", dist.Normal(level + z, 1.0), obs=x)


def rows_guide(x):
    loc = pyro.param("loc", torch.tensor(3.0))
    pyro.sample("level", dist.Normal(loc, 0.01))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.zeros(len(x))), 1.0))


X = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0])


@pytest.fixture(scope="module")
def by_rows():
    pyro.clear_param_store()
    return fixed(rows_model, rows_guide, X)


def near(draws, mean, sd, count):
    """Means of independent draws within 4.5 standard errors: one false alarm in 150,000 elements."""
    return bool(((draws.mean(0) - mean).abs() < 4.5 * sd / count**0.5).all())


@pytest.mark.parametrize("size", [1, 2, 9])
def test_latents_of_new_rows_are_fitted_to_what_is_observed_there(by_rows, size):
    """z | x ~ Normal(0.8 (x - level), sqrt 0.8), and a replicate has its mean and noise of its own."""
    new = torch.linspace(-2, 6, size)
    found = by_rows.predict(new, num_samples=2_000)
    assert found.local_latents == {"z": "local fit"} and "z from local fit" in repr(found)
    assert found["z"].shape == found["x"].shape == (2_000, size)
    exact = 0.8 * (new - 3.0)
    # Fitted on 1,000 draws, shown by 2,000: 4.5 standard errors are sqrt(0.8) 4.5 (0.001 + 0.0005)^1/2,
    # that is 0.16 for the mean; the width's own are smaller by sqrt 2, the replicates' larger.
    assert ((found["z"].mean(0) - exact).abs() < 0.16).all()
    assert ((found["z"].std(0) - 0.8**0.5).abs() < 0.12).all()
    assert ((found["x"].mean(0) - exact - 3.0).abs() < 0.2).all()


def test_latents_of_new_rows_come_from_the_model_on_request(by_rows):
    found = by_rows.predict(torch.full((4,), 50.0), num_samples=4_000, local_latents="prior")
    assert found.local_latents == {"z": "prior"}
    assert near(found["z"], 0.0, 2.0, 4_000) and near(found["x"], 3.0, 5**0.5, 4_000)
    with pytest.raises(ValueError, match=r"local_latents must be 'auto' or 'prior', not 'encoder'"):
        by_rows.predict(X, local_latents="encoder")


def test_rows_of_the_fit_keep_their_own_latents(by_rows):
    found = by_rows.predict(num_samples=500)
    assert found.local_latents == {"z": "posterior"} and found["z"].shape == (500, 5)
    assert near(found["z"], 0.0, 1.0, 500)
    again = pickle.loads(pickle.dumps(found))
    assert again.local_latents == found.local_latents and torch.equal(again["x"], found["x"])


def held_out(x, y=None, w=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.deterministic("line", slope * x + u)
        pyro.sample("y", dist.Normal(slope * x + u, 0.1), obs=y)
        pyro.sample("w", dist.Normal(u, 0.1), obs=w)


def test_sites_that_are_not_observed_in_the_new_rows():
    """Nothing observed: u from the model. One of two observed: u, and so the other, follow it."""
    x = torch.linspace(-1, 1, 6)
    result = fit(held_out, "normal", {"x": x, "y": x, "w": 0 * x}, steps=50, progress=False)
    blind = result.predict(torch.ones(8), num_samples=400)
    assert blind.local_latents == {"u": "prior"}
    assert {n: tuple(v.shape) for n, v in blind.items()} == dict.fromkeys(
        ["u", "line", "y", "w"], (400, 8)
    )
    assert abs(blind["u"].std() - 1.0) < 0.1
    told = result.predict(torch.zeros(2), w=torch.tensor([1.0, -1.0]), num_samples=400)
    assert told.local_latents == {"u": "local fit"}
    assert ((told["y"].mean(0) - torch.tensor([1.0, -1.0])).abs() < 0.1).all()
    torch.testing.assert_close(told["line"], told["u"])


def test_an_encoder_reads_the_new_rows():
    images = torch.randint(2, (30, 4, 4)).float()
    guide = EncoderGuide(perceptron_encoder((4, 4), 2, hidden=[8]))
    result = fit(
        VAE((4, 4), 2, hidden=[8]), guide, images, batch_size=10, steps=3, seed=0, progress=False
    )
    new = torch.randint(2, (45, 4, 4)).float()
    found = result.predict(new, num_samples=900)
    assert found.local_latents == {"z": "encoder"} and found["x"].shape == (900, 45, 4, 4)
    with result.fitted.applied():
        q = result.guide.posterior(new)
    assert near(found["z"], q.mean, q.stddev.max(), 900)
    assert result.predict(new, num_samples=2, local_latents="prior").local_latents["z"] == "prior"


# Plates over rows.


@pytest.mark.parametrize("size", [2, 4, 7])
def test_a_plate_over_columns_as_long_as_the_rows_is_not_one_over_rows(size):
    def model(x):
        with pyro.plate("columns", 4, dim=-1):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x), dim=-2):
                pyro.sample("x", dist.Normal(offset, 0.1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor([0.0, 1.0, 2.0, 3.0]))
        with pyro.plate("columns", 4, dim=-1):
            pyro.sample("offset", dist.Normal(loc, 0.01))

    found = fixed(model, guide, torch.zeros(4, 4)).predict(torch.zeros(size, 4), num_samples=50)
    assert found.local_latents == {} and found["x"].shape == (50, size, 4)
    assert ((found["x"].mean(0) - torch.arange(4.0)).abs() < 0.2).all()


def constant(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def weighted(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 5) as rows:
        pyro.sample("x", dist.Normal(mean * torch.ones(5)[rows], 1.0), obs=x)


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_new_rows_under_a_plate_that_names_its_size(size):
    assert fit(constant, data=X, steps=2, progress=False).predict(
        torch.zeros(size), num_samples=3
    )["x"].shape == (3, size)  # fmt: skip


def test_more_rows_than_a_model_can_take_are_refused():
    result = fit(weighted, data=X, steps=2, progress=False)
    assert result.predict(torch.zeros(4), num_samples=3)["x"].shape == (3, 4)
    with pytest.raises(
        DataError, match=r"does not run on 8 rows, more than the 5.*plate\('data', len"
    ):
        result.predict(torch.zeros(8), num_samples=3)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_shapes_have_no_dimensions_in_between(batch_size):
    def model(x):
        with pyro.plate("rows", 12, subsample_size=len(x), dim=-3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            centers = z.unsqueeze(-1).expand(*z.shape, 3)
            pyro.sample("x", dist.Normal(centers, 1.0).to_event(1), obs=x[:, None, None])

    def guide(x):
        with pyro.plate("rows", 12, subsample_size=len(x), dim=-3) as rows:
            loc = pyro.param("loc", torch.zeros(12))[rows]
            pyro.sample("z", dist.Normal(loc[:, None, None], 1.0))

    result = fixed(model, guide, torch.randn(12, 3), batch_size=batch_size)
    new = result.predict(torch.zeros(5, 3), num_samples=7)
    for found, size in ((result.predict(num_samples=7), 12), (new, 5)):
        assert found["x"].shape == (7, size, 3) and found["z"].shape == (7, size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_new_data_are_put_where_the_data_of_the_fit_are():
    result = fit(rows_model, "normal", X, steps=2, progress=False, device="cuda")
    assert result.predict(np.zeros(3), num_samples=2)["x"].device.type == "cuda"


# Responsibilities.

CENTERS = torch.tensor([2.0, -2.0])


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(CENTERS, 0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def exact_states(draws, x):
    log_joint = draws["weights"].log().unsqueeze(1) + dist.Normal(
        draws["mean"].unsqueeze(1), 1.0
    ).log_prob(x.unsqueeze(-1))
    return log_joint.softmax(-1).mean(0)


@pytest.fixture(scope="module")
def mixed():
    pyro.clear_param_store()
    return fit(mixture, "normal", X, steps=60, seed=0, progress=False)


@pytest.mark.parametrize("new", [None, torch.linspace(-3, 3, 9)])
def test_responsibilities_are_exact_conditionals_averaged_over_draws(mixed, new):
    pyro.set_rng_seed(1)
    draws = mixed.sample(50)
    pyro.set_rng_seed(1)
    found = mixed.responsibilities("z", new, num_samples=50)
    torch.testing.assert_close(found, exact_states(draws, X if new is None else new))
    torch.testing.assert_close(mixed.responsibilities(num_samples=9).sum(-1), torch.ones(5))


def test_labels_of_new_rows_follow_their_responsibilities(mixed):
    new = torch.tensor([-3.0, 0.0, 3.0])
    found = mixed.predict(new, num_samples=4_000)
    assert found.local_latents == {"z": "exact conditional"}
    share = found["z"].eq(1).double().mean(0)
    assert ((share - mixed.responsibilities(data=new)[:, 1]).abs() < 0.05).all()


def test_a_guide_that_draws_labels_is_asked_for_their_probabilities():
    def guide(x):
        pyro.sample("weights", dist.Dirichlet(pyro.param("c", torch.ones(2))))
        with pyro.plate("components", 2):
            pyro.sample("mean", dist.Normal(CENTERS, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))

    states = fixed(mixture, guide, X).responsibilities(num_samples=5)
    torch.testing.assert_close(states, torch.tensor([0.3, 0.7]).expand(5, 2))


@pytest.mark.parametrize("exact", [False, True])
def test_components_are_numbered_as_in_draws(exact):
    """Whatever numbers the fit gave to the components."""
    x = torch.cat([torch.randn(20, 2) + 4, torch.randn(30, 2) - 4])
    model = ConjugateGMM(2) if exact else BayesianGMM(2, pi="dirichlet", sigma="spherical")
    result = fit(model, "cavi" if exact else "normal", x, steps=20, seed=3, progress=False)
    states = result.responsibilities(num_samples=30)
    ordered = result.sample(30)["mu"].mean(0)[:, 0]
    if getattr(model, "relabel", None):
        assert ordered[0] < ordered[1]
    of_first = int(ordered.argmax())
    assert (states[:20, of_first] > 0.9).all() and (states[20:, of_first] < 0.1).all()
    new = result.predict(torch.full((3, 2), 4.0), num_samples=20)
    assert (new["z"] == of_first).all()


def test_a_responsibility_is_asked_for_by_a_name_that_there_is(mixed, by_rows):
    with pytest.raises(ValueError, match=r"'mean' is none of them; .*: 'z'\. Name one"):
        mixed.responsibilities("mean")
    with pytest.raises(ValueError, match=r"no site is named; .*: none"):
        by_rows.responsibilities()


def unseen(x, n=None):
    return mixture_of(x, n)


def mixture_of(x, n):
    mean = pyro.sample("mean", dist.Normal(CENTERS, 0.5).to_event(1))
    with pyro.plate("data", n or len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def test_nothing_observed_has_no_responsibilities():
    result = fit(unseen, data={"x": X}, steps=3, progress=False)
    with pytest.raises(DataError, match=r"site 'z': nothing that it explains is observed"):
        result.responsibilities(data={"x": None, "n": 3})
    assert result.predict(x=None, n=3, num_samples=4)["x"].shape == (4, 3)


def test_a_fit_without_data_predicts():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=X)

    found = fit(model, steps=3, progress=False).predict(num_samples=4)
    assert found["x"].shape == (4, 5) and found.local_latents == {}
