"""One contract for every guide that ``fit`` builds or is handed as an autoguide."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)

from ppl_vi import fit

X = torch.cat([torch.linspace(-2.5, -1.5, 6), torch.linspace(1.5, 2.5, 5)])
NAMES = ["normal", "delta", "multivariate_normal", "lowrank"]
CLASSES = [AutoDiagonalNormal, AutoLaplaceApproximation]
INSTANCES = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoIAFNormal": partial(AutoIAFNormal, hidden_dim=[20]),
    "AutoStructured": partial(AutoStructured, conditionals="normal"),
}


def constrained(x):
    """One latent of each kind of support, in no plate, one and two plates."""
    pyro.sample("mean", dist.Normal(0.0, 3.0))
    width = pyro.sample("width", dist.Gamma(2.0, 2.0))
    fraction = pyro.sample("fraction", dist.Beta(2.0, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 2, dim=-2):
        level = pyro.sample("level", dist.Uniform(-4.0, 4.0))
        with pyro.plate("columns", 3, dim=-1):
            effect = pyro.sample("effect", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    total = fraction + weights[..., 0] + effect.sum((-1, -2, -3)) / 6
    center = level.mean((-1, -2)) + total if level.dim() > 1 else total
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(center, width + 0.1), obs=x)


SHAPES = {
    "mean": (),
    "width": (),
    "fraction": (),
    "weights": (3,),
    "level": (2,),
    "effect": (2, 3, 2),
}
SUPPORTS = {
    "width": constraints.positive,
    "fraction": constraints.unit_interval,
    "weights": constraints.simplex,
    "level": constraints.interval(-4, 4),
}


def discrete(x):
    """A mixture whose labels no named guide can draw."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], 0.5), obs=x)


def check(result):
    draws = result.sample(7)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        name: (7, *shape) for name, shape in SHAPES.items()
    }
    assert all(SUPPORTS[name].check(draws[name]).all() for name in SUPPORTS)
    assert torch.isfinite(torch.tensor(result.elbo)) and torch.isfinite(result.losses).all()
    assert result.losses.shape == (result.num_steps,) == (6,)
    assert result.predict(num_samples=2)["x"].shape == (2, len(X))
    assert result.log_likelihood(2)["x"].shape == (2, len(X))


@pytest.mark.parametrize("guide", [*NAMES, *CLASSES], ids=str)
def test_names_and_classes(guide):
    check(fit(constrained, guide, X, steps=6, seed=0, progress=False))


@pytest.mark.parametrize("name", INSTANCES)
def test_instances(name):
    check(fit(constrained, INSTANCES[name](constrained), X, steps=6, seed=0, progress=False))


def test_guide_lists():
    guide = AutoGuideList(constrained)
    guide.append(AutoNormal(poutine.block(constrained, expose=["mean", "width", "level"])))
    guide.append(
        AutoMultivariateNormal(poutine.block(constrained, hide=["mean", "width", "level"]))
    )
    check(fit(constrained, guide, X, steps=6, seed=0, progress=False))


@pytest.mark.parametrize(
    ("guide", "batch_size"),
    [("normal", None), ("delta", 4), ("multivariate_normal", None), (AutoDiagonalNormal, 4)],
)
def test_discrete_latents_are_hidden_and_drawn_afterwards(guide, batch_size):
    result = fit(discrete, guide, X, batch_size=batch_size, steps=60, seed=1, progress=False)
    draws = result.sample(5)
    assert draws["z"].shape == (5, len(X)) and not draws["z"].is_floating_point()
    # Rows of one side have one label, those of the other side the other.
    low, high = draws["z"][:, :6].double().mean(), draws["z"][:, 6:].double().mean()
    assert abs(low - high) > 0.9


@pytest.mark.parametrize("guide", [*NAMES, AutoNormal], ids=str)
def test_initial_values_are_where_a_guide_starts(guide):
    values = {"mean": torch.tensor([-1.0, 4.0]), "weights": torch.tensor([0.2, 0.8])}
    seen = []

    class Mixture:
        def __call__(self, x):
            discrete(x)

        def initial_values(self, x):
            seen.append(len(x))
            return values

    def still(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    result = fit(Mixture(), guide, X, optimizer=still, steps=1, batch_size=4, progress=False)
    assert set(seen) == {len(X)}  # of all rows, not of a batch
    with result.fitted.applied():
        median = result.guide.median(X)
    for name, value in values.items():
        torch.testing.assert_close(median[name], value, rtol=1e-4, atol=1e-4)


def test_restarts_of_a_model_with_initial_values_all_start_there():
    def model(x):
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    model.initial_values = lambda x: {"mean": torch.tensor(0.7)}
    result = fit(model, "delta", X, steps=1, restarts=3, progress=False)
    assert abs(result.guide.median()["mean"] - 0.7) < 0.06


@pytest.mark.parametrize("guide", NAMES)
def test_the_default_dtype(guide):
    torch.set_default_dtype(torch.float64)
    try:
        result = fit(discrete, guide, X.numpy(), steps=3, progress=False)
        assert {v.dtype for v in result.sample(2).values()} == {torch.float64, torch.int64}
        assert {value.dtype for value in result.params.values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("guide", NAMES)
def test_a_model_without_data(guide):
    def model():
        pyro.sample("z", dist.Normal(3.0, 2.0))

    result = fit(model, guide, steps=200, seed=0, progress=False)
    assert abs(result.sample(2_000)["z"].mean() - 3.0) < 0.2
