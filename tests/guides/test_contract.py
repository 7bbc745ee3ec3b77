"""One contract for every guide of our own that has a name."""

import importlib.util
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_median
from torch.distributions import biject_to

from ppl_vi import ELBO, GuideError, fit
from ppl_vi.guides import MultivariateNormalGuide
from ppl_vi.program import Pair
from ppl_vi.starts import GuideStart, Whitening, find_modes

_SPEC = importlib.util.spec_from_file_location(
    "guide_families", Path(__file__).parent / "families.py"
)
families = sys.modules["guide_families"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(families)

X, SHAPES = families.X, families.SHAPES
each = pytest.mark.parametrize("family", families.FAMILIES.values(), ids=families.FAMILIES)
LONG = ("FlowGuide", "MixtureGuide")
spread = pytest.mark.parametrize(
    "family",
    [family for family in families.FAMILIES.values() if not family.point],
    ids=[name for name, family in families.FAMILIES.items() if not family.point],
)
SUPPORTS = {
    "width": dist.constraints.positive,
    "fraction": dist.constraints.unit_interval,
    "weights": dist.constraints.simplex,
    "level": dist.constraints.interval(-4, 4),
}


@pytest.fixture(autouse=True)
def _few_searches(monkeypatch):
    """Guides that look for several modes do so from one place, not from many."""
    few = lambda *given: find_modes(*given[:-1], 1)  # noqa: E731
    monkeypatch.setattr("ppl_vi.starting.find_modes", few)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def perturbed(family, model, *args, size=0.1):
    """A guide that has been called once, its parameters moved at random."""
    guide = family.make(model)
    guide(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += size * torch.randn_like(parameter)
    return guide


def small(x):
    """Few numbers, with supports that bend and a plate."""
    width = pyro.sample("width", dist.Gamma(2.0, 2.0))
    pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 2):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(level.sum(-1, keepdim=True), width.unsqueeze(-1)), obs=x)


SMALL = {
    "width": dist.constraints.positive,
    "weights": dist.constraints.simplex,
    "level": dist.constraints.real,
}


def unconstrained(trace):
    """``[S, 5]`` of draws in a plate of particles, and the log of |du / dz|."""
    parts, volume = [], 0.0
    for name, support in SMALL.items():
        value = trace.nodes[name]["value"]
        transform = biject_to(support)
        u = transform.inv(value)
        jacobian = transform.log_abs_det_jacobian(u, value)
        volume = volume - jacobian.reshape(len(value), -1).sum(-1)
        parts.append(u.reshape(len(value), -1))
    return torch.cat(parts, -1), volume


@spread
def test_the_density_is_that_of_the_draws(float64, family):
    """E_q[r / q] = 1 for any density r that q covers: within four standard errors, p = 6e-5 each."""
    guide = perturbed(family, small, X)
    draws, center = 20_000, torch.tensor([0.1, 0.0, -0.1, 0.05, 0.0])
    width = guide._start.init_scale
    with torch.no_grad(), pyro.plate("particles", draws, dim=-2):
        trace = poutine.trace(guide).get_trace(X)
    trace.compute_log_prob()
    sites = [s for s in trace.nodes.values() if s["type"] == "sample" and s["name"] != "particles"]
    log_q = sum(s["log_prob"].reshape(draws, -1).sum(-1) for s in sites if s["name"] != "groups")
    u, volume = unconstrained(trace)
    median = guide.median(X)
    middle = torch.cat([biject_to(s).inv(median[n]).reshape(-1) for n, s in SMALL.items()])
    reference = dist.Normal(middle + width * center, 0.7 * width).to_event(1)
    ratio = (reference.log_prob(u) + volume - log_q).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / draws**0.5
    assert ratio.std() < 10


@each
def test_every_parameter_has_its_gradient(float64, family):
    """The derivative along a random direction, against differences on the same draws."""
    guide = perturbed(family, families.constrained, X)
    pair = Pair(families.constrained, guide, (X,), {})
    objective = ELBO(num_particles=5)

    def loss():
        pyro.set_rng_seed(3)
        return objective.differentiable_loss(*pair[:2], X)

    parameters = dict(guide.named_parameters())
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        assert gradient.isfinite().all() and (gradient.any() or not gradient.numel()), name
    if not family.pathwise:
        return
    directions = [torch.randn_like(gradient) for gradient in gradients]
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    values, step = [], 1e-6
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters.values(), directions, strict=True):
                parameter += sign * step * direction
            values.append(loss())
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), expected, rtol=1e-4, atol=1e-4)


def narrow(x):
    """One latent; its posterior is narrow and far from its prior's median."""
    mean = pyro.sample("mean", dist.Normal(100.0, 50.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 0.01), obs=x)


@each
def test_names_classes_and_instances_are_one_road(family):
    settings = {"steps": 1, "seed": 0, "progress": False}
    forms = [family.name, family.kind(narrow), family.kind]
    elbos = {float(fit(narrow, form, X, **settings).elbo) for form in forms}
    assert len(elbos) == 1


@each
@pytest.mark.parametrize("particles", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_supports_plates_and_particles(family, particles):
    objective = ELBO(num_particles=particles)
    guide = family.make(families.constrained)
    settings = {"objective": objective, "steps": 3, "seed": 0, "progress": False}
    result = fit(families.constrained, guide, X, **settings)
    draws = result.sample(7)
    assert {n: tuple(v.shape) for n, v in draws.items()} == {
        n: (7, *shape) for n, shape in SHAPES.items()
    }
    assert all(SUPPORTS[name].check(draws[name]).all() for name in SUPPORTS)
    assert {v.dtype for v in draws.values()} == {torch.float32}
    assert result.losses.isfinite().all()
    median = {n: v.reshape(SHAPES[n]) for n, v in result.guide.median(X).items()}
    quantiles = result.guide.quantiles([0.1, 0.5], X)
    assert median.keys() == SHAPES.keys()
    for name, value in median.items():
        torch.testing.assert_close(quantiles[name][1].reshape(SHAPES[name]), value)
    assert (quantiles["mean"][0] <= quantiles["mean"][1]).all()


@each
def test_saved_and_loaded(float64, family):
    guide = perturbed(family, small, X)
    again = family.make(small)
    again(X)
    assert guide.state_dict().keys() == again.state_dict().keys()
    again.load_state_dict(guide.state_dict())
    draws = []
    for one in (guide, again):
        pyro.set_rng_seed(1)
        draws.append(one(X))
    for name in SMALL:
        assert torch.equal(draws[0][name], draws[1][name]), name
        assert draws[0][name].dtype == torch.float64


@each
@pytest.mark.parametrize("fresh_is_whole", [True, False])
def test_one_that_knew_the_posterior_is_loaded_into_one_that_did_not(
    float64, family, fresh_is_whole
):
    """And the other way round: a triangular factor into a diagonal one's place, and back."""
    sizes, factor = {"width": 1, "weights": 2, "level": 2}, torch.eye(5) + 0.1 * torch.ones(5, 5)
    knowing, ignorant = family.make(small), family.make(small)
    whitening = Whitening(sizes, torch.ones(5), factor.tril())
    knowing.start_at(GuideStart(init_to_median(), whitening=whitening))
    fresh, guide = (knowing, ignorant) if fresh_is_whole else (ignorant, knowing)
    for one in (guide, fresh):
        one(X)
    fresh.load_state_dict(guide.state_dict())
    expected, found = guide.median(X), fresh.median(X)
    for name in SMALL:
        torch.testing.assert_close(found[name], expected[name])


def under_another(x):
    """A latent whose support ends where another latent is, and one beside it of fixed ends."""
    end = pyro.sample("end", dist.LogNormal(0.0, 1.0))
    share = pyro.sample("share", dist.Uniform(0.0, 1.0))
    below = pyro.sample("below", dist.Uniform(0.0, end))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(share + below, 1.0), obs=x)


@each
def test_supports_that_other_latents_move_are_refused(family):
    with pytest.raises(GuideError, match=r"site 'below': its support depends .*share ~ Uniform"):
        family.make(under_another)(X)


def ends_in_the_data(x):
    """Ends that differ from row to row, and rows that the model chooses by itself, are none of that."""
    with pyro.plate("data", len(x), subsample_size=5) as rows:
        below = pyro.sample("below", dist.Uniform(0.0, x[rows].abs()))
        pyro.sample("x", dist.Normal(below, 1.0), obs=x[rows])


def test_supports_that_latents_move_are_refused_by_fit_and_those_that_data_move_drawn():
    with pytest.raises(GuideError, match="site 'below': its support depends on other latents"):
        fit(under_another, "normal", X, steps=1, progress=False)
    assert MultivariateNormalGuide(ends_in_the_data)(X)["below"].shape == (5,)


@each
def test_it_shows_its_name(family):
    guide = family.make(small)
    assert type(guide).__name__ in repr(guide)
    guide(X)
    assert type(guide).__name__ in repr(guide)


@each
def test_restarts_of_an_instance_and_going_on(family):
    guide = family.make(narrow)
    settings = {"steps": 2, "seed": 0, "progress": False}
    first = fit(narrow, guide, X, restarts=2, **settings)
    with first.fitted.applied():
        before = first.guide.median(X)["mean"]
    assert guide.started
    torch.testing.assert_close(guide.median(X)["mean"], before)
    assert fit(narrow, guide, X, **settings).losses.isfinite().all()


def quick(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=pytest.mark.slow if name in LONG else ())
        for name, family in families.FAMILIES.items()
    ],
)
def test_latents_of_rows(family):
    if not family.rows:
        with pytest.raises(ValueError, match="'own' stands in the plate of minibatches"):
            fit(families.rows_model, family.name, X, batch_size=4, steps=2, progress=False)
        return
    settings = {
        "objective": ELBO(2),
        "steps": 150,
        "seed": 0,
        "progress": False,
        "optimizer": quick,
    }
    guide = family.make(families.rows_model)
    result = fit(families.rows_model, guide, X, batch_size=4, **settings)
    median = result.guide.median(X)["own"]
    assert median.shape == (11,)
    assert (median.sign() == X.sign()).all()  # each row's own, though batches come shuffled
    assert result.sample(3)["own"].shape == (3, 11)


def plateless(x):
    """Two correlated latents, and no plate at all."""
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    second = pyro.sample("second", dist.Normal(first, 1.0))
    pyro.sample("x", dist.Normal(first + second, 1.0).expand((len(X),)).to_event(1), obs=x)


@each
def test_questions_without_a_plate(float64, family):
    settings = {"steps": 2, "seed": 0, "progress": False, "compile": False}
    x = X.double()
    result = fit(plateless, family.name, x, **settings)
    if family.name == "delta":
        with pytest.raises(GuideError, match="holds it at a point"):
            result.log_evidence(5)
    else:
        assert result.log_evidence(5) < 0
    assert result.marginal("first").sample(3)["first"].shape == (3,)
    # -first² / 2 - (second - first)² / 2 - Σ (x - first - second)² / 2
    precision = torch.tensor([[2.0, -1.0], [-1.0, 1.0]]) + len(x)
    first, second = torch.linalg.solve(precision, x.sum().expand(2))
    mode = result.mode()
    torch.testing.assert_close(mode["first"], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(mode["second"], second, atol=1e-6, rtol=0)
    given = result.conditional({"second": 0.1}, **settings)
    assert given.sample(3)["first"].shape == (3,)
