"""What goes into a fit: forms of data, restarts, numbers that are not finite, starting values."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_vi import ELBO, DataError, Progress, ScoreFunctionELBO, StopReason, fit

X = torch.linspace(0.5, 2.0, 12)


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mean", dist.Normal(loc, 0.3))


def frame_model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).expand([1]).to_event(1), obs=x)


class Rows(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i]}


FORMS = {
    "tensor": lambda: X,
    "array": X.numpy,
    "float64 array": lambda: X.double().numpy(),
    "list": X.tolist,
    "Series": lambda: pd.Series(X.numpy()),
    "tuple": lambda: (X.numpy(),),
    "dict": lambda: {"x": X},
    "Dataset": Rows,
    "TensorDataset": lambda: TensorDataset(X),
    "DataLoader": lambda: DataLoader(TensorDataset(X), batch_size=5),
    "shuffled loader": lambda: DataLoader(Rows(), batch_size=5, shuffle=True),
}


UNSHUFFLED = pytest.mark.xfail(
    strict=True,
    reason="every step counts alike, so that rows which are always in the short last batch of a "
    "loader without shuffling count more than the others",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=UNSHUFFLED if name == "DataLoader" else ()) for name in FORMS],
)
def test_every_form_of_data_gives_the_same_posterior(name):
    steps = 3_000 if name == "DataLoader" else 400  # to the end: the start is too good
    result = fit(model, "normal", FORMS[name](), steps=steps, seed=0, progress=False)
    assert abs(result.sample(2_000)["mean"].mean() - X.sum() / 13) < 0.1
    exact = dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + 1).log_prob(X)
    assert abs(result.elbo - exact) < 4.5 * result.elbo.standard_error + 0.1


def test_a_data_frame_is_a_matrix():
    result = fit(frame_model, data=pd.DataFrame({"x": X.numpy()}), steps=20, progress=False)
    assert result.predict(num_samples=3)["x"].shape == (3, 12, 1)


def test_arguments_that_are_not_rows_pass_whole():
    def scaled(x, scale, *, names):
        assert names == ["a", "b"] and scale == 2.0
        model(x / scale)

    result = fit(
        lambda x, scale: scaled(x, scale, names=["a", "b"]), data=(X, 2.0), steps=2, progress=False
    )
    assert result.num_steps == 2


def test_restarts_keep_the_best():
    """Two modes of different heights: a narrow guide stays in the one near which it starts."""

    def bimodal():
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.8, 0.2])),
            dist.Normal(torch.tensor([-4.0, 4.0]), 0.5),
        )
        pyro.sample("z", mixture)

    seen = []

    def start():
        loc = torch.tensor(4.0 if len(seen) == 0 else -4.0)
        seen.append(loc)
        return loc

    def narrow():
        loc = pyro.param("loc", start)
        pyro.sample("z", dist.Normal(loc, 0.5))

    result = fit(bimodal, narrow, steps=20, restarts=3, seed=0, progress=False)
    assert len(seen) == 3
    assert result.params["loc"] < -3
    assert abs(result.elbo - np.log(0.8)) < 0.05


def test_a_restart_without_a_finite_elbo_is_never_the_best():
    calls = []

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("bad", torch.log(z + 2) if len(calls) == 1 else 0 * z)  # NaN below -2

    def guide(x):
        loc = pyro.param("loc", lambda: calls.append(0) or torch.tensor(0.5))
        pyro.sample("z", dist.Normal(loc, 1.0))

    result = fit(model, guide, X, steps=2, restarts=2, on_nan="skip", seed=0, progress=False)
    assert len(calls) == 2 and np.isfinite(result.elbo)


def breaking(x):
    """Finite at the start; once ``mean`` is below zero, not any more."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("other", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.log(mean), 1.0), obs=x)


def breaking_guide(x):
    loc = pyro.param("loc", torch.tensor(3.0))
    pyro.sample("mean", dist.Normal(loc, 0.01))
    pyro.sample("other", dist.Normal(pyro.param("other_loc", torch.tensor(0.0)), 1.0))


def pulled(parameters):
    return torch.optim.SGD(parameters, lr=10.0)


@pytest.mark.parametrize("objective", [ELBO(2), pyro.infer.Trace_ELBO()], ids=["ours", "Pyro's"])
def test_a_number_that_is_not_finite_is_an_error_with_names(objective):
    with pytest.raises(FloatingPointError, match=r"step \d+: .*'x'.*'loc'") as caught:
        fit(
            breaking, breaking_guide, X, objective=objective, optimizer=pulled, steps=50, seed=0,
            progress=False,
        )  # fmt: skip
    message = str(caught.value)
    assert "'other" not in message and "on_nan='skip'" in message


def test_a_gradient_that_is_not_finite_is_an_error_too():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = pyro.param("scale", torch.tensor(0.0))
        pyro.factor("root", torch.sqrt(scale) + z * 0)

    with pytest.raises(FloatingPointError, match=r"step 1: a gradient is not finite.*'scale'"):
        fit(model, "normal", X, steps=3, progress=False)


def test_a_large_gradient_is_finite():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("steep", 1e25 * pyro.param("slope", torch.tensor(0.0)) + 0 * z)

    assert fit(model, "normal", X, steps=2, progress=False).num_steps == 2


def test_steps_that_are_not_finite_are_skipped():
    told = []

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        pyro.sample("mean", dist.Normal(loc, 1.0))
        pyro.sample("other", dist.Normal(0.0, 1.0))

    result = fit(
        breaking, guide, X, objective=ELBO(1), steps=60, on_nan="skip", seed=0,
        callbacks=[told.append], progress=False,
    )  # fmt: skip
    finite = torch.isfinite(result.losses)
    assert 0 < finite.sum() < 60 and len(told) == result.num_steps == 60
    assert np.isfinite(told[-1].smoothed_loss)
    assert torch.isfinite(result.params["loc"]) and result.params["loc"] > 0.6


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "lowrank"])
def test_parameters_that_blow_up_are_named(guide):
    with pytest.raises(FloatingPointError, match=r"step \d+"):
        fit(
            model, guide, X, optimizer=lambda p: torch.optim.SGD(p, lr=1e30), steps=20, seed=0,
            progress=False,
        )  # fmt: skip


def test_a_callback_stops_the_fit():
    told: list[Progress] = []

    def callback(progress):
        told.append(progress)
        return progress.step == 7

    heard = []
    result = fit(model, guide, X, steps=50, callbacks=[callback, heard.append], progress=False)
    assert result.num_steps == len(result.losses) == len(heard) == 7
    assert result.stop_reason is StopReason.CALLBACK
    assert [p.step for p in told] == list(range(1, 8))
    torch.testing.assert_close(torch.tensor([p.loss for p in told]), result.losses)


def test_callbacks_see_the_parameters():
    seen = []
    result = fit(
        model, guide, X, steps=3, callbacks=[lambda p: seen.append(pyro.param("loc").item())],
        progress=False,
    )  # fmt: skip
    assert seen[-1] == result.params["loc"].item() and len(set(seen)) == 3


@pytest.mark.parametrize("restarts", [1, 3])
def test_the_progress_bar_shows_the_elbo(capsys, restarts):
    fit(model, guide, X, steps=40, restarts=restarts, progress=True)
    shown = capsys.readouterr().err
    assert "ELBO -" in shown and "100%" in shown
    assert f"{40 * restarts}/{40 * restarts}" in shown
    assert (f"restart {restarts} of {restarts}" in shown) == (restarts > 1)
    fit(model, guide, X, steps=2, progress=False)
    assert capsys.readouterr() == ("", "")


def learned(x):
    """A model of which two parameters are learned: the widths of the prior and the noise."""
    spread = pyro.param("spread", torch.tensor(1.0), constraint=constraints.positive)
    noise = pyro.param("noise", lambda: torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("groups", 40, dim=-2):
        level = pyro.sample("level", dist.Normal(0.0, spread))
        with pyro.plate("members", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(level, noise), obs=x)


def test_parameters_of_the_model_reach_maximum_likelihood():
    """One-way analysis of variance: the variance within, and the one between in excess of it."""
    x = 2.0 * torch.randn(40, 1) + 0.5 * torch.randn(40, 6)
    result = fit(learned, "normal", x, steps=600, seed=0, progress=False)
    within = x.var(1).mean()
    between = x.mean(1).square().mean() - within / 6
    assert abs(result.params["noise"] / within.sqrt() - 1) < 0.02
    assert abs(result.params["spread"] / between.sqrt() - 1) < 0.02
    covariance = within * torch.eye(6) + between
    exact = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(x).sum()
    assert abs(result.elbo - exact) < 4.5 * result.elbo.standard_error + 0.3


def test_starting_values_of_parameters():
    class Model:
        def __call__(self, x):
            learned(x)

        def initial_values(self, x):
            return {"spread": torch.tensor(3.0), "noise": 0.25, "level": torch.full((40, 1), 2.0)}

    def still(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    x = torch.randn(40, 6)
    result = fit(Model(), "normal", x, optimizer=still, steps=1, progress=False)
    torch.testing.assert_close(result.params["spread"], torch.tensor(3.0))
    torch.testing.assert_close(result.params["noise"], torch.tensor(0.25))
    assert (result.guide.median(x)["level"] == 2.0).all()


def test_a_user_guide_keeps_its_own_start():
    """Starting values are for the guides that are built here and for the model's parameters."""

    class Model:
        def __call__(self, x):
            model(x)

        def initial_values(self, x):
            return {"mean": torch.tensor(3.0)}

    def still(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    result = fit(Model(), guide, X, optimizer=still, steps=1, progress=False)
    assert result.params["loc"] == 0.0


def test_the_score_function_comes_to_the_same_posterior():
    result = fit(
        model, guide, X, objective=ScoreFunctionELBO(num_particles=16), steps=300, seed=0,
        progress=False,
    )  # fmt: skip
    assert abs(result.params["loc"] - X.sum() / 13) < 0.1


def test_estimators_are_told():
    assert "Pathwise" in fit(model, guide, X, steps=1, progress=False).estimators["mean"]


def test_numpy_integers_are_integers():
    result = fit(model, guide, X, steps=np.int64(3), batch_size=np.int64(4), progress=False)
    assert result.num_steps == 3


def test_bad_rows_of_a_dataset_are_found_when_they_are_read():
    x = X.clone()
    x[10] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        fit(model, guide, DataLoader(TensorDataset(x), batch_size=4), steps=9, progress=False)
