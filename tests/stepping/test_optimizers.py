"""Torch's optimizers and schedulers, Pyro's, and Pyro's objectives, all through ``fit``."""

from functools import partial

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from ppl_vi import ELBO, fit

X = torch.linspace(0.5, 2.0, 10)
POSTERIOR_MEAN, POSTERIOR_SD = X.sum() / 11, 11**-0.5
LOG_EVIDENCE = dist.MultivariateNormal(torch.zeros(10), torch.eye(10) + 1).log_prob(X)


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def stepped(parameters):
    return StepLR(torch.optim.Adam(parameters, lr=0.1), step_size=100, gamma=0.3)


OPTIMIZERS = {
    "default": None,
    "AdamW": partial(torch.optim.AdamW, lr=0.03),
    "SGD": partial(torch.optim.SGD, lr=0.02, momentum=0.5),
    "Rprop": torch.optim.Rprop,
    "StepLR": stepped,
    "ReduceLROnPlateau": lambda p: ReduceLROnPlateau(torch.optim.Adam(p, lr=0.05), patience=50),
    "groups": lambda p: torch.optim.Adam([{"params": [one], "lr": 0.03} for one in p]),
    "Pyro's Adam": pyro.optim.Adam({"lr": 0.03}),
    "ClippedAdam": pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.99, "clip_norm": 5.0}),
    "by parameter": pyro.optim.Adam(lambda name: {"lr": 0.03 if name == "loc" else 0.04}),
    "Pyro's StepLR": pyro.optim.StepLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": 0.1},
            "step_size": 100,
            "gamma": 0.3,
        }
    ),
    "Pyro's ReduceLROnPlateau": pyro.optim.ReduceLROnPlateau(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "patience": 50}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_comes_to_the_posterior(name):
    result = fit(model, guide, X, optimizer=OPTIMIZERS[name], steps=300, seed=0, progress=False)
    assert abs(result.params["loc"] - POSTERIOR_MEAN) < 0.15
    assert abs(result.params["scale"] - POSTERIOR_SD) < 0.1


def moves(optimizer, steps):
    """How far each step moved the parameter of a bound whose gradient has length one in it."""
    seen = [0.0]

    def linear(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.factor("line", loc)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    fit(
        linear,
        lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)),
        X,
        optimizer=optimizer,
        steps=steps,
        callbacks=[lambda progress: seen.append(pyro.param("loc").item())],
        progress=False,
    )
    return torch.tensor(seen).diff()


SCHEDULES = {
    "torch": lambda p: LambdaLR(torch.optim.SGD(p, lr=1.0), lambda step: 0.5**step),
    "Pyro": pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "gamma": 0.5}
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("again", [1, 2])
def test_a_schedule_moves_once_a_step_and_begins_anew_in_every_fit(name, again):
    for _ in range(again):
        torch.testing.assert_close(moves(SCHEDULES[name], 4), torch.tensor([1.0, 0.5, 0.25, 0.125]))


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"foreach": False}, None),
        ({"fused": False}, False),
    ],
)
def test_adam_moves_all_parameters_at_once_unless_told_otherwise(options, fused):
    made = []

    def make(parameters):
        made.append(torch.optim.Adam(parameters, lr=0.1, **options))
        return made[-1]

    fit(model, guide, X, optimizer=make, steps=2, progress=False, compile=False)
    assert made[0].param_groups[0]["fused"] is fused


def test_steps_are_those_of_torch_where_someone_listens_to_them():
    heard = []

    def make(parameters):
        adam = torch.optim.Adam(parameters, lr=0.1)
        adam.register_step_post_hook(lambda *_: heard.append(1))
        return adam

    fit(model, guide, X, optimizer=make, steps=120, progress=False)
    assert len(heard) == 120


def test_plateau_schedulers_see_the_loss():
    """The loss falls all the time; a scheduler that waits for it to rise cuts the rate at once."""
    rising = lambda p: ReduceLROnPlateau(  # noqa: E731
        torch.optim.SGD(p, lr=1.0), mode="max", factor=0.5, patience=0, threshold=0.0
    )
    torch.testing.assert_close(moves(rising, 4), torch.tensor([1.0, 1.0, 0.5, 0.25]))


def test_the_default_rate_falls_over_the_planned_steps():
    steps = moves(None, 100)
    assert abs(steps[0] - 0.05) < 1e-3
    assert steps[-1] < 1e-4


def test_pyro_optimizers_forget_a_module_between_restarts_and_fits():
    """Their state is by tensor, and an autoguide brings the same tensors again."""
    optimizer = pyro.optim.Adam({"lr": 0.1})
    auto = AutoNormal(model)
    fit(model, auto, X, optimizer=optimizer, steps=50, seed=0, progress=False)
    first = fit(model, auto, X, optimizer=optimizer, steps=1, seed=1, progress=False)
    assert optimizer.optim_objs == {}
    before = first.start.constrained()["AutoNormal.locs.mean"]
    moved = first.params["AutoNormal.locs.mean"] - before
    assert abs(abs(moved) - 0.1) < 1e-4  # a first step of Adam has the length of the rate


def mixture(x):
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def bernoulli(x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def bernoulli_guide(x):
    p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(p))


PYROS = {
    "Trace_ELBO": pyro.infer.Trace_ELBO(num_particles=4),
    "vectorized": pyro.infer.Trace_ELBO(num_particles=8, vectorize_particles=True),
    "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO(num_particles=4),
    "TraceMeanField_ELBO": pyro.infer.TraceMeanField_ELBO(),
}


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("Trace_ELBO", 4), ("vectorized", 4), ("TraceGraph_ELBO", None), ("TraceMeanField_ELBO", 4)],
)
def test_pyro_objectives(name, batch_size):
    result = fit(
        model,
        guide,
        X,
        objective=PYROS[name],
        optimizer=partial(torch.optim.Adam, lr=0.05),
        batch_size=batch_size,
        steps=120,
        seed=0,
        progress=False,
    )
    assert abs(result.params["loc"] - POSTERIOR_MEAN) < 0.25
    assert result.estimators == {}
    error = (result.elbo.standard_error**2 + result.bound.standard_error**2) ** 0.5
    assert abs(result.bound - result.elbo) < 4.5 * error + 1e-6


def test_renyi_bound():
    """With alpha = 0 it is the importance-weighted bound, above the ELBO and below log p(x)."""
    objective = pyro.infer.RenyiELBO(alpha=0.0, num_particles=20)
    wide = lambda x: pyro.sample(  # noqa: E731
        "mean", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0)
    )
    result = fit(model, wide, X, objective=objective, steps=100, seed=0, progress=False)
    noise = 4.5 * (result.bound.standard_error + result.elbo.standard_error)
    assert result.elbo + 1.0 < result.bound < LOG_EVIDENCE + noise


def test_trace_enum_sums_out_what_the_guide_leaves_out():
    """Its bound is that of the marginalised program, in training and at the end."""
    result = fit(
        mixture,
        "normal",
        X,
        objective=pyro.infer.TraceEnum_ELBO(),
        steps=50,
        seed=0,
        progress=False,
    )
    error = (result.elbo.standard_error**2 + result.bound.standard_error**2) ** 0.5
    assert abs(result.bound - result.elbo) < 4.5 * error
    ours = fit(mixture, "normal", X, objective=ELBO(), steps=50, seed=0, progress=False)
    assert abs(result.elbo - ours.elbo) < 0.2
    assert result.sample(5)["z"].shape == (5, 10)


def test_trace_enum_forgets_the_plates_of_the_last_model():
    """Pyro's objective keeps the depth of plates that it guessed first."""
    objective = pyro.infer.TraceEnum_ELBO()

    def deeper(x):
        rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
        with pyro.plate("outer", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(rate))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, -1))

    fit(mixture, "normal", X, objective=objective, steps=2, progress=False)
    result = fit(deeper, "normal", X, objective=objective, steps=2, progress=False)
    assert abs(result.bound - result.elbo) < 4.5 * (
        result.bound.standard_error + result.elbo.standard_error
    )


def test_baselines_of_pyro():
    """Its moving averages live in the parameter store, and are no parameters to train."""
    x = X - 0.2
    log_odds = dist.Normal(2.0, 1.0).log_prob(x).sum() - dist.Normal(0.0, 1.0).log_prob(x).sum()
    baseline = {"baseline": {"use_decaying_avg_baseline": True}}

    def with_baseline(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("z", dist.Bernoulli(p), infer=baseline)

    objective = pyro.infer.TraceGraph_ELBO(4)
    adam = partial(torch.optim.Adam, lr=0.05)
    result = fit(
        bernoulli, with_baseline, x, objective=objective, optimizer=adam, steps=100, seed=0,
        progress=False,
    )  # fmt: skip
    assert abs(result.params["p"] - log_odds.sigmoid()) < 0.1


def test_trace_enum_with_an_enumerated_guide():
    x = X - 0.2
    log_odds = dist.Normal(2.0, 1.0).log_prob(x).sum() - dist.Normal(0.0, 1.0).log_prob(x).sum()
    guide = pyro.infer.config_enumerate(bernoulli_guide)
    adam = partial(torch.optim.Adam, lr=0.05)
    result = fit(
        bernoulli, guide, x, objective=pyro.infer.TraceEnum_ELBO(), optimizer=adam, steps=100, seed=0,
        progress=False,
    )  # fmt: skip
    assert abs(result.params["p"] - log_odds.sigmoid()) < 0.01
    assert result.bound.standard_error < 1e-5


def test_a_parameter_with_two_names_moves_once():
    """As in AutoIAFNormal, whose network is part of a list and of the guide."""
    shared = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(shared.weight)

    def twice(x):
        pyro.module("one", shared)
        pyro.module("two", shared)
        pyro.factor("line", shared.weight.sum())
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = lambda x: pyro.sample("z", dist.Normal(0.0, 1.0))  # noqa: E731
    fit(twice, guide, X, optimizer=partial(torch.optim.SGD, lr=1.0), steps=1, progress=False)
    assert shared.weight.item() == 1.0
