"""A fit leaves the rest of the program as it was, and what it returns is its own."""

import random
import traceback

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.utils.data import TensorDataset

from ppl_vi import ELBO, fit
from ppl_vi.randomness import seed_all

X = torch.linspace(0.5, 2.0, 10)


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, width), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def quick(model=model, guide=guide, data=X, **options):
    return fit(model, guide, data, **{"steps": 5, "progress": False, **options})


def global_state():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "pyro validation": pyro.distributions.is_validation_enabled(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "parameters": {n: v.tolist() for n, v in pyro.get_param_store().items()},
        "constraints": dict(pyro.get_param_store()._constraints),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
    }


def stop(progress):
    raise KeyboardInterrupt


def disturb(progress):
    random.random(), np.random.rand(), torch.rand(1)


@pytest.mark.parametrize("callback", [disturb, stop], ids=["success", "failure"])
@pytest.mark.parametrize(
    ("guide", "batch_size", "validate"),
    [(guide, None, True), (guide, 4, False), ("normal", 4, True), ("lowrank", None, False)],
)
def test_global_state_is_what_it_was(guide, batch_size, callback, validate):
    """Also where the store holds parameters of the same names, with other shapes."""
    for name in ("loc", "width", "NormalGuide.locs.mean"):
        pyro.param(name, torch.full((3,), 7.0), constraint=constraints.interval(0, 9))
    with pyro.validation_enabled(validate):
        before = global_state()
        try:
            result = quick(guide=guide, batch_size=batch_size, seed=1, callbacks=[callback])
        except KeyboardInterrupt:
            result = None
        assert global_state() == before
        if result is not None:
            assert result.params["width"].shape == ()
            result.summary(10), result.predict(num_samples=2), result.log_likelihood(2)
            after = global_state()
            assert {**after, **{n: before[n] for n in ("torch", "numpy")}} == before


def test_seeding_is_as_pyro_s_and_looks_at_no_stack(monkeypatch):
    def drawn():
        return torch.rand(()).item(), np.random.rand(), random.random()

    pyro.set_rng_seed(3)
    expected = drawn()
    if torch.accelerator.current_accelerator() is None:
        monkeypatch.setattr(traceback, "format_stack", None)
    seed_all(3)
    assert drawn() == expected


def test_a_seed_of_numpy_s_is_that_number(tmp_path):
    seeded, plain = (quick(guide="normal", seed=seed) for seed in (np.int64(3), 3))
    assert torch.equal(seeded.losses, plain.losses)
    seeded.save(tmp_path / "seeded")


def test_an_unseeded_fit_draws_from_the_global_state():
    before = torch.get_rng_state()
    one = quick()
    assert not torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(quick().losses, one.losses)
    torch.set_rng_state(before)
    assert torch.equal(quick().losses, one.losses)


@pytest.mark.parametrize(
    ("guide", "options"),
    [
        (guide, {"restarts": 2}),
        (guide, {"objective": pyro.infer.Trace_ELBO()}),
        ("normal", {"batch_size": 4}),
        ("multivariate_normal", {"restarts": 2}),
        (AutoDiagonalNormal, {}),
    ],
)
def test_a_seed_repeats_the_fit(guide, options):
    one = quick(guide=guide, seed=3, **options)
    torch.rand(5)
    two = quick(guide=guide, seed=3, **options)
    assert torch.equal(one.losses, two.losses)
    assert one.elbo == two.elbo
    torch.testing.assert_close(one.params, two.params, rtol=0, atol=0)
    assert not torch.equal(one.losses, quick(guide=guide, seed=4, **options).losses)


def test_a_seed_repeats_the_order_of_a_dataset():
    fits = [quick(data=TensorDataset(X), batch_size=3, seed=3) for _ in range(2)]
    assert torch.equal(fits[0].losses, fits[1].losses)


class Regression(PyroModule):
    """A model with frozen and trained parameters, and buffers."""

    def __init__(self, norm=None):
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.linear.bias.requires_grad_(False)
        self.width = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.norm = norm or nn.Identity()

    def forward(self, x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = self.linear(self.norm(x.unsqueeze(-1))).squeeze(-1) + shift
            pyro.sample("x", dist.Normal(mean, self.width), obs=x)


def registered():
    """The same with ``pyro.module``."""
    linear = nn.Linear(1, 1)
    linear.bias.requires_grad_(False)

    def model(x):
        pyro.module("linear", linear)
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(linear(x.unsqueeze(-1)).squeeze(-1) + shift, 1.0), obs=x)

    model.linear = linear
    return model


@pytest.mark.filterwarnings("ignore:bias was not registered:UserWarning")
@pytest.mark.parametrize("objective", [ELBO(2), pyro.infer.Trace_ELBO()], ids=["ELBO", "Pyro's"])
@pytest.mark.parametrize("make", [Regression, registered])
@pytest.mark.parametrize("guide", ["normal", "user's"])
def test_frozen_parameters_stay_frozen(make, objective, guide):
    model = make()
    bias, weight = model.linear.bias, model.linear.weight
    before = bias.detach().clone(), weight.detach().clone()
    result = quick(model, AutoNormal(model) if guide == "user's" else guide, objective=objective)
    assert not bias.requires_grad and bias.grad is None
    assert torch.equal(bias, before[0])
    assert weight.requires_grad and not torch.equal(weight, before[1])
    result.sample(2), result.predict(num_samples=2)
    assert not bias.requires_grad


def test_results_of_one_module_do_not_disturb_each_other():
    """A result keeps its own parameters and buffers while the module goes on training."""
    model = Regression(nn.BatchNorm1d(1))
    one = quick(model, "normal", seed=1)
    params, statistics = one.params, model.norm.running_mean.clone()
    draws, predictions = seeded(one.sample), seeded(one.predict)
    two = quick(model, "normal", 5 + 3 * X, seed=2, steps=40)
    live = {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.equal(two.params["linear.weight"], params["linear.weight"])
    assert not torch.equal(model.norm.running_mean, statistics)
    torch.testing.assert_close(one.params, params, rtol=0, atol=0)
    torch.testing.assert_close(seeded(one.sample), draws, rtol=0, atol=0)
    torch.testing.assert_close(seeded(one.predict), predictions, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), live, rtol=0, atol=0)


def seeded(draw):
    pyro.set_rng_seed(0)
    return draw(num_samples=3)


def test_a_model_in_training_mode_keeps_its_statistics_after_the_fit():
    """Asking a result for something is not a step: batch norm's running mean stays."""
    model = Regression(nn.BatchNorm1d(1))
    result = quick(model, "normal")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result.predict(num_samples=3), result.to_arviz(3), result.summary(3)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_result_owns_copies():
    result = quick(seed=0)
    result.params["loc"].fill_(99.0)
    assert result.params["loc"] != 99.0


def test_an_autoguide_instance_is_trained_in_place():
    guide = AutoNormal(model)
    result = quick(guide=guide, steps=200, seed=0)
    assert result.guide is guide
    median = guide.median()["mean"]
    torch.testing.assert_close(median, result.params["AutoNormal.locs.mean"])
    assert abs(median - X.sum() / 11) < 0.3
    again = quick(guide=guide, steps=1, seed=0)  # goes on from where it was
    assert abs(again.params["AutoNormal.locs.mean"] - median) < 0.1


def test_the_best_restart_stays_in_the_guide():
    guide = AutoNormal(model)
    result = quick(guide=guide, steps=20, restarts=3, seed=0)
    assert torch.equal(guide.locs.mean.detach(), result.params["AutoNormal.locs.mean"])


@pytest.mark.parametrize("guide", [guide, "normal"])
def test_the_same_programs_can_be_fitted_again(guide):
    """What is known of a pair from the first fit must not stand in for running it."""
    first, second = quick(guide=guide), quick(guide=guide, data=X + 5.0)
    assert first.params.keys() == second.params.keys() != set()


def test_a_program_that_changed_is_looked_at_anew():
    options = {"both": False}

    def changing(x):
        model(x)
        if options["both"]:
            pyro.sample("more", dist.Normal(0.0, 1.0))

    def its_guide(x):
        guide(x)
        if options["both"]:
            pyro.sample("more", dist.Normal(pyro.param("more_loc", torch.tensor(0.0)), 1.0))

    assert set(quick(changing, its_guide).sample(1)) == {"mean"}
    options["both"] = True
    assert set(quick(changing, its_guide).sample(1)) == {"mean", "more"}


def test_given_data_are_not_changed():
    x, array = X.clone(), X.numpy().copy()
    result = quick(data=x)
    quick(data=array)
    result.predict()
    assert torch.equal(x, X) and (array == X.numpy()).all()
    assert not x.requires_grad
