"""A run's log-weights are Pyro's own log-densities, particle by particle."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample

from ppl_vi.program import Pair, draw_plainly, inspect, run
from ppl_vi.program.run import run_guide

NUM_PARTICLES = 5


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


def normal(name, shift=0.0, shape=()):
    """Draw a site from a learned Normal."""
    loc = pyro.param(f"{name}_loc", torch.full(shape, 0.3 + shift))
    scale = pyro.param(
        f"{name}_scale", torch.full(shape, 0.7), constraint=dist.constraints.positive
    )
    return pyro.sample(name, dist.Normal(loc, scale))


def nested():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("outer", 3, dim=-2):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        with pyro.plate("inner", 4, dim=-1):
            pyro.sample("x", dist.Normal(z, 0.5), obs=torch.arange(12.0).reshape(3, 4))


def nested_guide():
    normal("mu")
    with pyro.plate("outer", 3, dim=-2):
        normal("z", 0.1, (3, 1))


def sequential():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("steps", 3):
        w = pyro.sample(f"w_{i}", dist.Normal(mu, 1.0))
        pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=torch.tensor(0.1 * i))


def sequential_guide():
    normal("mu")
    for i in pyro.plate("steps", 3):
        normal(f"w_{i}", i)


def one_plate(handler):
    """A model whose observations stand inside a handler."""

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), handler(mu):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.arange(4.0))

    return model


def one_plate_guide(handler):
    def guide():
        mu = normal("mu")
        with pyro.plate("data", 4), handler(mu):
            normal("z", 0.1, (4,))

    return guide


def both(handler):
    return one_plate(handler), one_plate_guide(handler)


def extras():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("bonus", -mu.abs())
    twice = pyro.deterministic("twice", 2.0 * mu)
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(twice, 1.0))
        pyro.factor("inside", -z.square())


def extras_guide():
    mu = normal("mu")
    pyro.factor("offset", 0.5 * mu)
    pyro.deterministic("other", mu)
    with pyro.plate("data", 4):
        normal("z")


def events():
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    s = pyro.sample("s", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 4):
        mean = torch.zeros(4, 3) + w + s
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(4, 3))


def events_guide():
    pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), torch.eye(3) * 0.4))
    pyro.sample("s", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))


def swapped_order_guide():
    """The inner plate is opened first; the dimensions are the model's."""
    with pyro.plate("inner", 4, dim=-1), pyro.plate("outer", 3, dim=-2):
        normal("z", 0.0, (3, 4))


def swapped_order():
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3, 4))


def event_for_plate_guide():
    """The guide holds in an event what the model holds in a plate."""
    mu = normal("mu")
    pyro.sample("z", dist.Normal(mu.unsqueeze(-1) + torch.arange(4.0), 0.3).to_event(1))


def discrete():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    with pyro.plate("data", 4):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=torch.arange(4.0))


def discrete_guide():
    z = pyro.sample("z", dist.Bernoulli(0.6))
    with pyro.plate("data", 4):
        pyro.sample("k", dist.Categorical(torch.stack([1.0 + z, 2.0 - z, z + 0.5], -1)))


CASES = {
    "nested plates": (nested, nested_guide),
    "sequential plates": (sequential, sequential_guide),
    "scalar scale": both(lambda mu: poutine.scale(scale=2.5)),
    "tensor scale": both(lambda mu: poutine.scale(scale=torch.arange(1.0, 5.0))),
    "scale of a latent": both(lambda mu: poutine.scale(scale=1.0 + mu.square())),
    "mask": both(lambda mu: poutine.mask(mask=torch.tensor([True, False, True, True]))),
    "mask of nothing": both(lambda mu: poutine.mask(mask=False)),
    "mask of a latent": both(lambda mu: poutine.mask(mask=mu > 0.3)),
    "factor and deterministic": (extras, extras_guide),
    "events": (events, events_guide),
    "plates opened in another order": (swapped_order, swapped_order_guide),
    "event for a plate": (both(lambda mu: poutine.scale(scale=1.0))[0], event_for_plate_guide),
    "discrete": (discrete, discrete_guide),
}


def logs_by_pyro(pair, structure, made, k):
    """log p - log q of particle ``k``, by Pyro's own traces."""
    drawn = {n: made.latents[n].value[k].reshape(structure.sites[n].shape) for n in made.latents}
    guide = poutine.condition(pair.guide, data=drawn)
    model = poutine.condition(pair.model, data=drawn)
    log_q = poutine.trace(guide).get_trace(*pair.args).log_prob_sum()
    return poutine.trace(model).get_trace(*pair.args).log_prob_sum() - log_q


def check_against_pyro(pair, **particles):
    structure = replace(inspect(pair), **particles)
    with torch.no_grad():
        made = run(structure, pair, draw_plainly, NUM_PARTICLES)
        expected = [logs_by_pyro(pair, structure, made, k) for k in range(NUM_PARTICLES)]
    torch.testing.assert_close(made.log_weights(), torch.stack(expected), rtol=1e-12, atol=1e-10)
    return structure, made


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "particles",
    [{}, {"model_particles": "vmap"}, {"model_particles": "loop"}, {"guide_particles": "loop"}],
    ids=str,
)
def test_log_weights_are_those_of_pyro(case, particles):
    check_against_pyro(Pair(*CASES[case], (), {}), **particles)


@pytest.mark.parametrize("case", [case for case in CASES if case != "event for a plate"])
def test_plain_programs_run_in_a_plate(case):
    structure = inspect(Pair(*CASES[case], (), {}))
    assert (structure.guide_particles, structure.model_particles) == ("plate", "plate")


def switched(handler):
    """A handler whose setting is a Python number taken from a latent."""
    return both(lambda mu: handler(mu.item() > 0.3))


@pytest.mark.parametrize(
    "pair",
    [
        switched(lambda positive: poutine.mask(mask=positive)),
        switched(lambda positive: poutine.scale(scale=2.0 if positive else 1.0)),
        switched(lambda positive: poutine.mask(mask=torch.arange(4) > 1 if positive else True)),
    ],
    ids=["mask", "scale", "tensor or not"],
)
def test_settings_taken_from_a_latent_are_each_particles_own(pair):
    structure, made = check_against_pyro(Pair(*pair, (), {}))
    assert structure.model_particles == "loop"
    assert len((made.latents["mu"].value > 0.3).unique()) == 2


@pytest.mark.parametrize("case", CASES)
def test_factors_have_the_shape_of_their_plates(case):
    model, guide = CASES[case]
    pair = Pair(model, guide, (), {})
    structure = inspect(pair)
    made = run(structure, pair, draw_plainly, NUM_PARTICLES)
    for factor in made.factors:
        sizes = [structure.plates[plate].size for plate in factor.plates]
        assert factor.log_prob.shape == (NUM_PARTICLES, *sizes)
    for latent in made.latents.values():
        sizes = [structure.plates[plate].size for plate in latent.plates]
        assert latent.log_q.shape == (NUM_PARTICLES, *sizes)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 3):
        b = pyro.sample("b", dist.Normal(0.0, s))
    with pyro.plate("rows", len(y)):
        mean = (x * w.unsqueeze(-2)).sum(-1) + b.sum(-1, keepdim=True)
        pyro.sample("y", dist.Normal(mean, s.unsqueeze(-1)), obs=y)


def guide_list(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["w", "b"])))
    guide.append(AutoDelta(poutine.block(model, expose=["s"])))
    return guide


AUTOGUIDES = [
    AutoNormal,
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    guide_list,
]


@pytest.mark.parametrize("family", AUTOGUIDES)
def test_log_weights_of_autoguides_are_those_of_pyro(family):
    pair = Pair(regression, family(regression), (torch.randn(4, 2), torch.randn(4)), {})
    structure, _ = check_against_pyro(pair)
    assert structure.guide_particles == "plate"


class Line(PyroModule):
    def __init__(self):
        super().__init__()
        self.offset = PyroParam(torch.tensor(0.2))
        self.slope = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x, y):
        mean = self.slope * x + self.offset
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_pyro_modules_run():
    model = Line()
    structure, _ = check_against_pyro(
        Pair(model, AutoNormal(model), (torch.arange(4.0), torch.ones(4)), {})
    )
    assert structure.model_particles == "plate"


def subsampled(data, rows):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data), subsample=rows) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data[rows])


def subsampled_guide(data, rows):
    normal("mu")
    loc = pyro.param("z_loc", torch.arange(1.0 * len(data)))
    with pyro.plate("data", len(data), subsample=rows) as rows:
        pyro.sample("z", dist.Normal(loc[rows], 1.0))


def test_subsampled_plates_are_scaled_as_by_pyro():
    pair = Pair(subsampled, subsampled_guide, (torch.arange(9.0), torch.tensor([7, 1, 3])), {})
    structure, made = check_against_pyro(pair)
    scales = {factor.sites[0]: factor.scale for factor in made.factors}
    assert (structure.plates["data"].size, structure.plates["data"].full_size) == (3, 9)
    assert (scales["x"], scales["z"], scales["mu"]) == (3.0, 3.0, 1.0)


def randomly_subsampled(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data), subsample_size=3) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1e-3), obs=data[rows])


def randomly_subsampled_guide(data):
    normal("mu")
    with pyro.plate("data", len(data), subsample_size=3) as rows:
        pyro.sample("z", dist.Normal(data[rows], 1e-3))


def test_guide_and_model_share_the_rows_of_a_subsample():
    pair = Pair(randomly_subsampled, randomly_subsampled_guide, (torch.arange(90.0),), {})
    structure = inspect(pair)
    (x,) = [f for f in run(structure, pair, draw_plainly, 4).factors if f.sites == ("x",)]
    assert (x.log_prob > 0.0).all()  # other rows would be thousands of deviations away
    assert (structure.guide_particles, structure.model_particles) == ("plate", "plate")


def test_a_random_subsample_of_the_model_alone_is_one_for_all_particles():
    def model(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), subsample_size=3) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=data[rows])

    pair = Pair(model, lambda data: normal("mu"), (torch.arange(90.0),), {})
    structure = inspect(pair)
    assert (structure.guide_particles, structure.model_particles) == ("plate", "plate")
    made = run(structure, pair, lambda name, made: torch.zeros(made.shape()), 4)
    (x,) = [f for f in made.factors if f.sites == ("x",)]
    assert (x.log_prob == x.log_prob[0]).all()


def test_a_masked_draw_keeps_its_score():
    def guide():
        loc = torch.zeros(3)
        mask = torch.tensor([True, False, True])
        pyro.sample("a", dist.Normal(loc, 1.0).mask(mask).to_event(1))
        with pyro.plate("three", 3):
            pyro.sample("b", dist.Normal(loc, 1.0).mask(mask))
            with poutine.mask(mask=mask):
                pyro.sample("c", dist.Normal(loc, 1.0))

    def model():
        pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("three", 3):
            pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("c", dist.Normal(0.0, 1.0))

    pair = Pair(model, guide, (), {})
    made = run(inspect(pair), pair, draw_plainly, 4)
    for name, latent in made.latents.items():
        score = dist.Normal(0.0, 1.0).log_prob(latent.value)
        expected = score.sum(-1) if name == "a" else score
        torch.testing.assert_close(latent.log_q, expected)


def test_row_numbers_come_with_the_guide():
    pair = Pair(randomly_subsampled, randomly_subsampled_guide, (torch.arange(90.0),), {})
    values = run_guide(inspect(pair), pair, draw_plainly, 4).values
    assert values["data"].shape == (3,)
    assert values["z"].shape == (4, 3)
