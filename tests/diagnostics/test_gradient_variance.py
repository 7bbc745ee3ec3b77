"""The measuring tool of gradients: right references, honest z, and nothing left behind.

Two right estimators with three parameters are held against the exact gradient below 4.5 standard
errors, and four with two parameters against each other: these alarm falsely once in 4,500.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib.axes
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoNormal

from ppl_vi import (
    ELBO,
    DisARM,
    Enumerate,
    GuideError,
    ImportanceWeightedELBO,
    LeaveOneOut,
    Pathwise,
    ReparameterizedELBO,
    ScoreFunction,
    gradient_variance,
    plot_gradient_variance,
)

COLUMNS = ["mean", "bias_z", "components", "variance", "seconds", "variance_x_seconds"]
DATA = torch.linspace(-1.0, 2.0, 12)


def chain():
    before = 0.5
    for name in "abc":
        before = pyro.sample(name, dist.Bernoulli(0.2 + 0.5 * before))
    pyro.sample("x", dist.Normal(before, 1.0), obs=torch.tensor(0.8))


def chain_guide():
    for name in "abc":
        logit = pyro.param(f"{name}_logit", torch.tensor(0.3))
        pyro.sample(name, dist.Bernoulli(logits=logit))


def gaussian(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 12, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def gaussian_guide(x):
    loc = pyro.param("loc", torch.tensor(0.2))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


@dataclass(frozen=True)
class Halved(ScoreFunction):
    """Half the gradient: wrong on purpose."""

    def term(self, draws: Any, credit: torch.Tensor, state: Any) -> torch.Tensor:
        return 0.5 * super().term(draws, credit, state)


def measure(*args: Any, **options: Any) -> Any:
    return gradient_variance(*args, **{"num_draws": 120, "seed": 0, "progress": False, **options})


MANY = ELBO(32)  # a gradient of many particles takes hardly longer than one of a few


@pytest.fixture(scope="module")
def of_chain():
    right = {"score": ScoreFunction(LeaveOneOut()), "pairs": DisARM()}
    return measure(
        chain, chain_guide, None, {**right, "sum": Enumerate(), "half": Halved(LeaveOneOut())}
    )


def test_one_row_for_each_estimator_and_parameter(of_chain):
    assert list(of_chain.columns) == COLUMNS
    assert of_chain.index.names == ["estimator", "parameter"]
    assert list(of_chain.loc["pairs"].index) == ["a_logit", "b_logit", "c_logit"]
    assert len(of_chain) == 12 and (of_chain["components"] == 1).all()
    assert (of_chain["seconds"] > 0).all() and not of_chain.isna().any(axis=None)
    work = of_chain["variance"] * of_chain["seconds"]
    assert of_chain["variance_x_seconds"].tolist() == pytest.approx(work.tolist())


def test_the_exact_gradient_tells_right_from_wrong(of_chain):
    assert of_chain.attrs["reference"].startswith("exact")
    assert (of_chain.loc[["score", "pairs", "sum"], "bias_z"] < 4.5).all()
    assert (of_chain.loc["sum", "variance"] == 0).all()
    assert of_chain.loc["half", "bias_z"].max() > 4.5
    half = {"half": Halved(LeaveOneOut())}
    strong = measure(chain, chain_guide, None, half, num_draws=75, objective=MANY)
    assert strong["bias_z"].max() > 10


def test_the_mean_is_that_of_the_bound_s_gradient():
    path = {"path": Pathwise()}
    found = measure(gaussian, gaussian_guide, DATA, path, num_draws=75, objective=MANY)
    row = found.loc[("path", "loc")]
    exact = (DATA - 0.2).sum().item() - 0.2 / 9
    assert row["mean"] == pytest.approx(exact, abs=5 * (row["variance"] / 75) ** 0.5 + 1e-4)
    assert found.attrs["reference"] == "a longer run of the same estimator"
    assert (found["bias_z"] < 4.5).all()


def test_pathwise_is_less_noisy_and_all_agree():
    compared = {
        "path": Pathwise(),
        "score": ScoreFunction(LeaveOneOut()),
        "stick": {"mean": Pathwise(stick_the_landing=True)},
        "auto": "auto",
    }
    found = measure(gaussian, gaussian_guide, DATA, compared)
    variance = found["variance"].groupby("estimator").sum()
    assert variance["path"] < variance["score"] / 3
    assert found.attrs["reference"].startswith("pooled") and (found["bias_z"] < 4.5).all()


def test_several_components_have_a_norm():
    def model():
        pyro.sample("z", dist.Normal(torch.tensor([3.0, 4.0]), 1.0).to_event(1))

    def guide():
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    row = measure(model, guide, None, {"path": Pathwise()}, num_draws=50).loc[("path", "loc")]
    assert row["mean"] == pytest.approx(5.0, rel=1e-3) and row["components"] == 2


def test_batches_count_for_all_rows():
    ones = torch.ones(12)
    path, options = {"path": Pathwise()}, {"num_draws": 25, "objective": MANY}
    whole = measure(gaussian, gaussian_guide, ones, path, **options)
    part = measure(gaussian, gaussian_guide, ones, path, **options, batch_size=4)
    first, second = (t.loc[("path", "loc")] for t in (whole, part))
    assert second["mean"] == pytest.approx(first["mean"], rel=0.15)


def test_store_and_random_state_are_left_alone():
    pyro.param("loc", torch.tensor(0.7))
    pyro.param("unrelated", torch.tensor(1.0))
    store, kept = pyro.get_param_store(), pyro.get_param_store().get_state()
    values = {name: p.detach().clone() for name, p in kept["params"].items()}
    state = torch.get_rng_state()
    path = {"path": Pathwise()}
    found = measure(gaussian, gaussian_guide, DATA, path, num_draws=25, objective=MANY)
    row = found.loc[("path", "loc")]
    assert row["mean"] == pytest.approx(
        (DATA - 0.7).sum().item(), abs=0.6
    )  # not from the start 0.2
    assert "unrelated" not in found.index.get_level_values("parameter")
    assert list(store.get_state()["params"]) == ["loc", "unrelated"]
    for name, parameter in store.get_state()["params"].items():
        assert parameter is kept["params"][name] and parameter.grad is None
        assert torch.equal(parameter, values[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_keeps_its_parameters_and_their_gradients():
    guide, other = AutoNormal(gaussian), AutoNormal(gaussian, init_scale=2.0)
    guide(DATA)
    pyro.clear_param_store()
    other(DATA)  # its parameters stand in the store under the same names
    before = dict(guide.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    grads = {}
    for name, parameter in before.items():
        grads[name] = parameter.grad = torch.ones_like(parameter)
    measure(gaussian, guide, DATA, {"path": Pathwise()}, num_draws=5)
    for name, parameter in guide.named_parameters():
        assert parameter is before[name] and torch.equal(parameter, values[name])
        assert parameter.grad is grads[name] and torch.equal(parameter.grad, torch.ones(()))


def test_whole_objectives_and_names_of_guides():
    compared = {"one": ImportanceWeightedELBO(K=1), "auto": "auto"}
    found = measure(gaussian, "normal", DATA, compared, num_draws=20)
    parameters = ["NormalGuide.locs.mean", "NormalGuide.scales.mean"]
    assert list(found.loc["one"].index) == parameters


def explodes(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mean", dist.Normal(loc + 0 * torch.sqrt(loc.abs()), 1.0))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"estimators": {}}, ValueError, "estimators: pass the ones to compare by name"),
        ({"estimators": Pathwise()}, ValueError, "estimators: pass the ones to compare by name"),
        ({"num_draws": 1}, ValueError, "num_draws must be an integer of 2 or more, not 1"),
        ({"num_draws": 2.5}, ValueError, "num_draws must be"),
        ({"estimators": {"sum": Enumerate()}}, GuideError, "site 'mean': Enumerate needs"),
        ({"estimators": {"odd": 3}}, TypeError, "estimators: pass an estimator"),
        ({"objective": ReparameterizedELBO()}, ValueError, "estimators of ReparameterizedELBO"),
        ({"objective": pyro.infer.Trace_ELBO()}, TypeError, "objective: pass a ppl_vi objective"),
        (
            {"guide": explodes},
            FloatingPointError,
            "estimator 'path': the gradient of parameter 'loc'",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(options, error, sentence):
    given = {"guide": gaussian_guide, "estimators": {"path": Pathwise()}, "objective": ELBO()}
    with pytest.raises(error, match=sentence):
        measure(gaussian, data=DATA, **{**given, **options})


def labels(axis: matplotlib.axes.Axes) -> list[str]:
    return [marker.get_label() for marker in axis.collections]


def test_the_picture_names_every_estimator_once(of_chain):
    figure = plot_gradient_variance(of_chain)
    (axis,) = figure.axes
    named = ["score", "pairs", "sum (no noise)", "half"]
    assert labels(axis) == named
    assert [text.get_text() for text in axis.texts] == named
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_crowded_picture_has_numbers_and_a_list(of_chain):
    rows = {f"a rather long name of estimator {i}": of_chain.loc["score"] for i in range(30)}
    crowded = pd.concat(rows, names=["estimator", "parameter"])
    axis = Figure().subplots()
    assert plot_gradient_variance(crowded, axis) is axis.figure
    assert len(labels(axis)) == len(axis.get_legend().get_texts()) == 30
