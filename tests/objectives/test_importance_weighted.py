"""Bounds that are power means: their values by hand, their credit, and where they are taken."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import ELBO, ForwardKL, ImportanceWeightedELBO, RenyiELBO, fit
from ppl_vi.program import Pair

X = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.7], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


BOUNDS = [
    ImportanceWeightedELBO(4, 3),
    RenyiELBO(0.5, 4, 3),
    RenyiELBO(-1.0, 4, 3),
    RenyiELBO(2.0, 4, 3),
]


def by_hand(objective, log_w):
    """``[...]`` from ``[3 * 4, ...]`` log-weights."""
    weights = log_w.reshape(3, 4, *log_w.shape[1:]).exp() ** objective.order
    return (weights.mean(1).log() / objective.order).mean(0)


@pytest.mark.parametrize("objective", BOUNDS, ids=str)
def test_the_bound_is_a_power_mean_of_weights(objective):
    log_w = 2 * torch.randn(12, 5)
    torch.testing.assert_close(objective.bound(log_w), by_hand(objective, log_w))


@pytest.mark.parametrize("objective", BOUNDS, ids=str)
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_the_drop_is_that_of_one_particle_replaced(objective, spread):
    log_w, new = spread * torch.randn(12, 2), spread * torch.randn(12, 2)
    found = objective.drop(log_w, new)
    for k in range(12):
        replaced = log_w.clone()
        replaced[k] = new[k]
        expected = objective.bound(log_w) - objective.bound(replaced)
        torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-9 * spread)


@pytest.mark.parametrize("objective", BOUNDS, ids=str)
def test_weights_are_the_gradient_of_the_bound(objective):
    log_w = torch.randn(12, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective.bound(log_w), log_w)
    torch.testing.assert_close(objective.weights(log_w.detach()) / 3, gradient)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def posterior(x):
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + shift, math.sqrt(0.5)))


EVIDENCE = -X.square() / 4 - math.log(4 * math.pi) / 2
OBJECTIVES = [ImportanceWeightedELBO(3), RenyiELBO(0.3, 3), ELBO(4, analytic=False)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_under_the_posterior_every_bound_is_the_log_evidence(objective):
    assert -objective.loss(model, posterior, X) == pytest.approx(EVIDENCE.sum().item(), rel=1e-12)


def still(parameters):
    """An optimizer that goes nowhere."""
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_rows_of_a_batch_count_outside_the_logarithm(objective):
    """Each row's bound is scaled by N / B, in a short last batch too: 2, 2 and 1 of 5 rows."""
    result = fit(
        model,
        posterior,
        X,
        batch_size=2,
        objective=objective,
        optimizer=still,
        steps=6,
        progress=False,
    )
    per_epoch = result.losses.double().reshape(2, 3)
    shares = torch.tensor([2.0, 2.0, 1.0]) / 5
    expected = -EVIDENCE.sum().expand(2)
    torch.testing.assert_close((per_epoch * shares).sum(1), expected, rtol=1e-6, atol=1e-6)
    assert result.bound == pytest.approx(EVIDENCE.sum().item(), rel=1e-6)


def test_one_particle_makes_the_elbo():
    posterior(X)
    pyro.param("shift").data.fill_(0.4)
    losses = []
    for objective in (ImportanceWeightedELBO(1, 6), ELBO(6, analytic=False)):
        pyro.set_rng_seed(1)
        losses.append(objective.loss(model, posterior, X))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_bounds_rise_with_particles():
    posterior(X)
    pyro.param("shift").data.fill_(0.8)
    values = [-ImportanceWeightedELBO(K, 20_000 // K).loss(model, posterior, X) for K in (1, 5, 50)]
    assert values[0] < values[1] < values[2] < EVIDENCE.sum().item() + 0.02


def test_the_bound_is_taken_in_the_plates_that_latents_share():
    def shared(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def shared_guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    objective = ImportanceWeightedELBO(3)
    assert objective.plan(Pair(model, posterior, (X,), {})).shared == ("data",)
    assert objective.plan(Pair(shared, shared_guide, (X,), {})).shared == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImportanceWeightedELBO(0), "K must be a positive integer"),
        (lambda: ImportanceWeightedELBO(2.5), "K must be a positive integer"),
        (lambda: ImportanceWeightedELBO(2, 0), "num_particles must be a positive integer"),
        (lambda: RenyiELBO(1.0), "alpha must be a finite number other than 1"),
        (lambda: RenyiELBO(math.inf), "alpha must be a finite number other than 1"),
        (lambda: ForwardKL(1), "K must be 2 or more"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
