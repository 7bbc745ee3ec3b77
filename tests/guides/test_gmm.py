"""GMMGuide: its sites, what it refuses, rows of minibatches, and where it starts."""

import pyro
import pytest
import torch
from pyro import poutine

from ppl_vi import ELBO, GuideError, fit
from ppl_vi.guides import GMMGuide
from ppl_vi.models import BayesianGMM
from ppl_vi.program import Pair, inspect

K, N = 3, 31
OPTIONS = [
    pytest.param(dims, pi, sigma, id=f"{dims}-{pi}-{sigma}")
    for dims in (0, 2)
    for pi in ("learned", "dirichlet")
    for sigma in (1.0, "learned", "spherical", "diagonal")
    if dims or sigma != "diagonal"
]


def clusters(dims, num_rows=N):
    rows = 8.0 * (torch.arange(num_rows) % K).unsqueeze(-1) + torch.randn(num_rows, max(dims, 1))
    return rows if dims else rows.squeeze(-1)


@pytest.mark.parametrize(("dims", "pi", "sigma"), OPTIONS)
def test_it_draws_what_the_model_draws(dims, pi, sigma):
    model, data = BayesianGMM(K, pi=pi, sigma=sigma), clusters(dims)
    structure = inspect(Pair(model, GMMGuide(model), (data,), {}))
    assert (structure.guide_particles, structure.model_particles) == ("plate", "plate")
    event = tuple(data.shape[1:])
    shapes = {"mu": (K, *event), "z": (N,)}
    if pi == "dirichlet":
        shapes["pi"] = (K,)
    if isinstance(sigma, str) and sigma != "learned":
        shapes["sigma"] = (K,) if sigma == "spherical" else (K, *event)
    latents = structure.of_kind("latent")
    assert {name: tuple(structure.sites[name].shape) for name in latents} == shapes
    plates = {"mu": ("component",), "sigma": ("component",), "z": ("data",), "pi": ()}
    assert all(structure.sites[name].plates == plates[name] for name in latents)


def test_full_covariances_are_refused():
    with pytest.raises(GuideError, match="multivariate_normal"):
        GMMGuide(BayesianGMM(2, sigma="full"))


def logits_of(data, num_rows=None):
    model = BayesianGMM(K)
    GMMGuide(model, num_rows)(data)
    return pyro.param("z_logits").detach()


@pytest.mark.parametrize("dims", [0, 2])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_labels_start_undecided_and_likelier_for_nearer_centers(dims, unit):
    data = unit * clusters(dims)
    logits = logits_of(data)
    assert logits.shape == (N, K)
    assert torch.equal(logits.argmax(-1), torch.arange(N) % K)
    assert 0.4 < logits.softmax(-1).max() < 0.999


def test_the_start_lies_within_the_clusters():
    data = clusters(2)
    GMMGuide(BayesianGMM(K))(data)
    assert (pyro.param("mu_loc") - 8.0 * torch.arange(K).unsqueeze(-1)).abs().max() < 1.5
    assert (pyro.param("mu_scale") > 0).all() and (pyro.param("mu_scale") < 1.0).all()


@pytest.mark.parametrize("size", [8, 5])
def test_minibatches_draw_from_the_logits_of_their_rows(size):
    data, rows = clusters(0), torch.randperm(N)[:size]
    model = BayesianGMM(K)
    guide = GMMGuide(model, num_rows=N)
    guide(data[rows])
    assert pyro.param("z_logits").shape == (N, K)
    with torch.no_grad():
        pyro.get_param_store().get_state()["params"]["z_logits"].copy_(torch.randn(N, K))
    with poutine.trace() as tape, poutine.condition(data={"data": rows}):
        guide(data[rows])
    site = tape.trace.nodes["z"]
    logits = pyro.param("z_logits")[rows]
    torch.testing.assert_close(site["fn"].logits, logits.log_softmax(-1))


@pytest.mark.slow
def test_minibatches_reach_the_posterior_of_all_rows():
    """Labels by the score function, means pathwise; 31 rows in batches of 12, the last one of 7."""
    data, model = clusters(0), BayesianGMM(K, tau=10.0, sigma=1.0)
    guide, objective = GMMGuide(model, num_rows=N), ELBO(num_particles=16)
    result = fit(
        model, guide, data, batch_size=12, objective=objective, steps=2_000, seed=0, progress=False
    )
    labels = torch.arange(N) % K
    assert result.params["z_logits"].shape == (N, K)
    assert torch.equal(result.params["z_logits"].argmax(-1), labels)
    sizes = labels.bincount()
    means = torch.zeros(K).index_add(0, labels, data) / sizes
    width = 1 / sizes.sqrt()  # of the posterior, if the batches count for all rows
    assert ((result.params["mu_loc"] - means).abs() < 0.7 * width).all()
    assert (result.params["mu_scale"] / width - 1).abs().max() < 0.1


def test_minibatches_without_the_number_of_rows_are_refused():
    model, data = BayesianGMM(K), clusters(0)
    with pytest.raises(GuideError, match="subsample_size"):
        fit(model, GMMGuide(model), data, batch_size=8, steps=1, progress=False)
