"""How a batch of particles runs: the fastest way that gives each particle what it gets alone."""

import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from ppl_vi.program import Pair, draw_plainly, inspect
from ppl_vi.program.run import run_guide, run_model

X = torch.tensor([[0.5, -1.0], [1.5, 0.3], [0.2, 0.9], [-0.4, 0.1]])


def observed(mean):
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.ones(4))


def coefficients():
    return pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def right_aligned():
    observed((X * coefficients()).sum(-1))


def from_the_left():
    z = torch.tensor([0, 1, 1, 0])
    observed(coefficients()[z])


def matrix_product():
    observed(X @ coefficients())


def first_coefficient():
    beta = coefficients()
    observed(beta[0] + beta[1] * X[:, 1])


def summed_over_all():
    observed(coefficients().sum() * X[:, 0])


def assignments_from_the_left():
    means = coefficients()
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(means[z], 1.0), obs=torch.ones(4))


def in_place():
    mean = torch.zeros(4)
    mean[:2] = coefficients()
    observed(mean)


def number():
    observed(float(coefficients().detach().norm()) * X[:, 0])


def branch():
    beta = coefficients()
    observed(X[:, 0] if beta.sum() > 0 else X[:, 1])


def rare_branch():
    """A branch that a few trial particles are unlikely to take."""
    beta = coefficients()
    observed(X[:, 0] if (beta > 6.0).any() else X[:, 1])


def row_index(data=X):
    """A plate of the model's own, subsampled by Pyro."""
    beta = coefficients()
    with pyro.plate("rows", 4, subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(data[rows] @ beta, 1.0), obs=torch.ones(2))


def point_estimate():
    weight = pyro.param("weight", torch.ones(2))
    observed(X @ (weight * coefficients()))


MODES = {
    right_aligned: "plate",
    from_the_left: "vmap",
    matrix_product: "vmap",
    first_coefficient: "vmap",
    summed_over_all: "vmap",
    assignments_from_the_left: "vmap",
    in_place: "loop",
    number: "loop",
    branch: "loop",
    rare_branch: "loop",
    row_index: "vmap",
    point_estimate: "vmap",
}


def guide():
    pyro.sample("beta", dist.Normal(torch.ones(2), 0.5).to_event(1))


@pytest.mark.parametrize("model", MODES, ids=lambda model: model.__name__)
def test_the_way_of_running_particles(model):
    structure = inspect(Pair(model, guide, (), {}))
    assert (structure.guide_particles, structure.model_particles) == ("plate", MODES[model])


@pytest.mark.parametrize("model", MODES, ids=lambda model: model.__name__)
def test_each_particle_gets_what_it_gets_alone(model):
    pair = Pair(model, guide, (), {})
    structure = inspect(pair)
    values = run_guide(structure, pair, draw_plainly, 6).values
    values["rows"] = torch.tensor([2, 0])
    together = run_model(structure, pair, values, 6)
    for k in range(6):
        single = {name: v if name == "rows" else v[k : k + 1] for name, v in values.items()}
        alone = run_model(replace(structure, model_particles="loop"), pair, single, 1)
        for mine, other in zip(together, alone, strict=True):
            assert (mine.sites, mine.plates) == (other.sites, other.plates)
            torch.testing.assert_close(mine.log_prob[k : k + 1], other.log_prob)


@pytest.mark.parametrize("model", [matrix_product, number], ids=["vmap", "loop"])
def test_gradients_pass_through_every_way(model):
    loc = torch.zeros(2, requires_grad=True)
    pair = Pair(model, guide, (), {})
    structure = inspect(pair)
    factors = run_model(structure, pair, {"beta": loc.expand(3, 2)}, 3)
    total = sum(factor.signed.sum() for factor in factors)
    prior = dist.Normal(torch.zeros(2), 1.0).log_prob(loc).sum()
    expected = (
        prior
        if model is number
        else prior + dist.Normal(X @ loc, 1.0).log_prob(torch.ones(4)).sum()
    )
    torch.testing.assert_close(*(torch.autograd.grad(t, loc)[0] for t in (total, 3 * expected)))


def left_indexing_guide():
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("b", dist.Normal(a[0], 1.0))


def branching_guide():
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("b", dist.Normal(5.0 if (a > 6.0).any() else 0.0, 1.0))


def chained_guide():
    a = pyro.sample("a", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    pyro.sample("b", dist.Normal(a[..., 0], 1.0))


@pytest.mark.parametrize(
    ("own", "way"),
    [(left_indexing_guide, "loop"), (branching_guide, "loop"), (chained_guide, "plate")],
)
def test_the_way_of_running_the_guide(own, way):
    def model():
        pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    assert inspect(Pair(model, own, (), {})).guide_particles == way


def test_an_autoguide_runs_in_a_plate_beside_a_model_that_does_not():
    structure = inspect(Pair(matrix_product, AutoNormal(matrix_product), (), {}))
    assert (structure.guide_particles, structure.model_particles) == ("plate", "vmap")


def test_trials_do_not_warn():
    def model():
        beta = coefficients()
        warnings.warn("a trial with a batch", stacklevel=1) if beta.dim() > 1 else None
        observed(X @ beta)

    inspect(Pair(model, guide, (), {}))


@pytest.mark.parametrize("seed", range(8))
def test_particles_that_are_nearly_alike_do_not_hide_an_event_of_as_many_rows(seed):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=torch.zeros(3))

    def narrow():
        pyro.sample("z", dist.Normal(0.0, 0.01))

    def narrow_with_event():
        z = pyro.sample("z", dist.Normal(0.0, 0.01))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1))

    pyro.set_rng_seed(seed)
    assert inspect(Pair(model, narrow, (), {})).model_particles == "vmap"
    unseen = poutine.uncondition(model)
    assert inspect(Pair(unseen, narrow_with_event, (), {})).guide_particles == "loop"


def test_particles_that_are_alike_do_not_hide_a_matrix_of_as_many_rows():
    def model():
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        factor = scale * torch.eye(3)  # of several particles, each row would have its own
        pyro.sample(
            "x", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=torch.ones(3)
        )

    def guide():
        pyro.sample("scale", dist.Delta(torch.tensor(0.5)))

    assert inspect(Pair(model, guide, (), {})).model_particles == "vmap"
