"""What cannot be fitted is refused before the first step, in a sentence that names place and remedy."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from ppl_vi import (
    ELBO,
    DataError,
    GuideError,
    ModelError,
    Pathwise,
    ScoreFunctionELBO,
    fit,
    register_guide,
)
from ppl_vi.models import ConjugateGMM

X = torch.linspace(0.5, 2.0, 10)


def model(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    width = pyro.sample("width", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, width), obs=x)


def guide(x: Any) -> None:
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("width", dist.LogNormal(0.0, 1.0))


def missing(x: Any) -> None:
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def extra(x: Any) -> None:
    guide(x)
    pyro.sample("meam", dist.Normal(0.0, 1.0))


def observed(x: Any) -> None:
    guide(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def wrong_support(x: Any) -> None:
    missing(x)
    pyro.sample("width", dist.Normal(0.0, 1.0))


def wrong_shape(x: Any) -> None:
    pyro.sample("width", dist.LogNormal(0.0, 1.0))
    loc = pyro.param("loc", torch.zeros(3))
    pyro.sample("mean", dist.Normal(loc, 1.0).to_event(1))


def undeclared_shape(x: Any) -> None:
    pyro.sample("width", dist.LogNormal(0.0, 1.0))
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0))


def fixed(x: Any) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("width", dist.LogNormal(0.0, 1.0))


def no_groups(x: Any) -> None:
    model(x)
    with pyro.plate("groups", 0):
        pyro.sample("group", dist.Normal(0.0, 1.0))


def failing(x: Any) -> None:
    guide(x)
    raise RuntimeError("a bug of mine")


def no_latent(x: Any) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def no_plate(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x)]).to_event(1), obs=x)


def undeclared_rows(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def one_site_outside(x: Any) -> None:
    model(x)
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1), obs=x)


def subsampled_twice(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=3) as rows:
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])


def plate_of_other_size(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1000, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def whole_plate(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def local_latents(x: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x: Any) -> None:
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def two_lengths(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def mixture(x: Any) -> None:
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def counts(x: Any) -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def needs_draws(x: Any) -> None:
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    low = pyro.param("low", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("width", dist.Uniform(low, low + 1.0))


def real_width(x: Any) -> None:
    width = pyro.sample("width", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, width), obs=x)


def tied(x: Any) -> None:
    total = sum(pyro.sample(f"z{i}", dist.Bernoulli(0.5)) for i in range(26))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean + total, 1.0), obs=x)


def loader() -> Any:
    return DataLoader(TensorDataset(X), batch_size=4)


class Bad(NamedTuple):
    """Arguments of ``fit`` that do not go together, and what the message must say."""

    arguments: dict[str, Any]
    error: type[Exception]
    words: str


def bad(error: type[Exception], words: str, **arguments: Any) -> Bad:
    return Bad({"model": model, "guide": guide, "data": X, **arguments}, error, words)


CASES: dict[str, Bad] = {
    "missing": bad(GuideError, "'width'.*Add pyro.sample", guide=missing),
    "extra": bad(GuideError, "'meam'.*(?=.*correct its name)(?=.*'mean')", guide=extra),
    "observed": bad(GuideError, "'x'.*observed.*Remove it", guide=observed),
    "support": bad(GuideError, "'width'.*support.*Use a distribution", guide=wrong_support),
    "shape": bad(GuideError, r"'mean'.*\(3,\).*\(\).*Use the same plates", guide=wrong_shape),
    "undeclared shape": bad(GuideError, "'mean'.*same plates", guide=undeclared_shape),
    "guide fails": bad(GuideError, "'width'.*a bug of mine", guide=failing),
    "guide without parameters": bad(GuideError, "trainable.*pyro.param", guide=fixed),
    "guide takes other arguments": bad(GuideError, "guide.*before its first", guide=lambda: None),
    "no latent": bad(ModelError, "no latent.*Give an unknown", model=no_latent, guide=lambda x: None),
    "no latent, named": bad(ModelError, "no latent.*Give an unknown", model=no_latent, guide="normal"),
    "unknown name": bad(ValueError, "'normale'.*'normal'", guide="normale"),
    "not a guide": bad(TypeError, "guide.*name.*int", guide=3),
    "NaN": bad(DataError, "`data`.*NaN.*Drop", data=torch.tensor([1.0, float("nan")])),
    "NaN in a dict": bad(DataError, r"data\['x'\].*NaN", data={"x": np.array([1.0, np.nan])}),
    "infinite": bad(DataError, "'x'.*", data=torch.tensor([1.0, float("inf")])),
    "strings": bad(DataError, "`data`.*numbers", data=np.array(["a", "b"])),
    "objects": bad(DataError, "`data`.*numbers", data=np.array([1.0, None], dtype=object)),
    "integers": bad(DataError, r"'x'.*int64.*\.float\(\)", data=torch.arange(10)),
    "outside the support": bad(DataError, "'x'.*Poisson", model=counts, data=-X, guide="normal"),
    "not counts": bad(DataError, "'x'.*Poisson", model=counts, data=X, guide="normal"),
    "lengths": bad(
        (DataError, ModelError), "'y'.*", model=two_lengths, data=(X, X[:7]), guide="normal"
    ),
    "no argument": bad(ModelError, "model could not run.*'x'", data=None, guide="normal"),
    "no plate": bad(ModelError, "batch_size.*pyro.plate", model=no_plate, guide="normal", batch_size=4),
    "undeclared rows": bad(DataError, "'x'.*pyro.plate", model=undeclared_rows, guide="normal"),
    "a loader without plate": bad(ModelError, "DataLoader.*pyro.plate", model=no_plate, data=loader()),
    "a site outside": bad(ModelError, "'y'.*plate", model=one_site_outside, batch_size=4),
    "subsampled twice": bad(ModelError, "'data'", model=subsampled_twice, guide="normal", batch_size=4),
    "another size": bad(ModelError, "'data'.*1000.*subsample_size", model=plate_of_other_size,
                        guide="normal", batch_size=4),
    "unknown plate": bad(ModelError, "'rows'.*'data'", data_plate="rows", batch_size=4),
    "unknown plate, full batch": bad(ModelError, "data_plate.*'rows'", data_plate="rows"),
    "rows of a loader": bad(ModelError, "'data'.*DataLoader.*Dataset", model=whole_plate,
                            guide="normal", data=loader()),
    "AutoNormal on batches": bad(GuideError, "'data'.*subsample_size", model=local_latents,
                                 guide="normal", batch_size=4),
    "local guide on batches": bad(GuideError, "subsample_size", model=local_latents,
                                  guide=local_guide, batch_size=4),
    "batch of 0": bad(DataError, "batch_size.*0", batch_size=0),
    "batch of -1": bad(DataError, "batch_size.*-1", batch_size=-1),
    "batch of 1.5": bad(DataError, "batch_size.*1.5", batch_size=1.5),
    "batch of True": bad(DataError, "batch_size.*True", batch_size=True),
    "batches of no data": bad(DataError, "batch_size=4", model=lambda: None, data=None, batch_size=4),
    "0 steps": bad(ValueError, "steps.*0", steps=0),
    "a seed between whole numbers": bad(ValueError, "seed.*1.5", seed=1.5),
    "a seed of True": bad(ValueError, "seed.*True", seed=True),
    "a negative seed": bad(ValueError, "seed.*-1", seed=-1),
    "1.5 steps": bad(ValueError, "steps.*1.5", steps=1.5),
    "0 restarts": bad(ValueError, "restarts.*0", restarts=0),
    "on_nan": bad(ValueError, "on_nan.*'ignore'", on_nan="ignore"),
    "an optimizer itself": bad(TypeError, "optimizer.*Adam",
                               optimizer=torch.optim.Adam([torch.zeros(1, requires_grad=True)])),
    "an optimizer by name": bad(TypeError, "optimizer.*class", optimizer="adam"),
    "a factory of nothing": bad(TypeError, "optimizer.*NoneType", optimizer=lambda parameters: None),
    "LBFGS": bad(TypeError, "LBFGS.*closure", optimizer=torch.optim.LBFGS),
    "a device elsewhere": bad(DataError, "device='nowhere'.*Leave `device` out", device="nowhere"),
    "a list of integers observed": bad(DataError, r"'x'.*list.*torch.tensor\(values\)",
                                       model=counts, data=([1, 2],), guide="normal"),
    "real numbers as a width": bad(ModelError, "the model.*scale of Normal.*site 'width'.*HalfNormal",
                                   model=real_width, guide="normal"),
    "too many joint states": bad(ModelError, "26 discrete.*'z0'.*Draw some of them in the guide",
                                 model=tied, guide="normal"),
    "too many joint states, exact updates": bad(ModelError, "26 discrete.*'z0'.*pyro.markov",
                                                model=tied, guide="cavi"),
    "an estimator's class": bad(TypeError, r"'mean'.*Pathwise\(\)",
                                objective=ELBO(estimators={"mean": Pathwise})),
    "a column too few": bad(DataError, r"\[N, D\].*data\[:, None\]", model=ConjugateGMM(2),
                            guide="cavi"),
    "a number as objective": bad(TypeError, "objective.*3", objective=3),
    "an objective's class": bad(TypeError, "objective.*ScoreFunctionELBO", objective=ScoreFunctionELBO),
    "Trace_ELBO on a mixture": bad(GuideError, "'z'.*Trace_ELBO.*TraceEnum_ELBO", model=mixture,
                                   guide="normal", objective=pyro.infer.Trace_ELBO()),
    "score function of moving ends": bad(GuideError, "'width'.*Pathwise", guide=needs_draws,
                                         objective=ScoreFunctionELBO()),
    "empty plate": bad(ModelError, "'groups' of the model has size 0", model=no_groups),
    "empty plate, named guide": bad(ModelError, "'groups' of the model", model=no_groups,
                                    guide="normal"),
    "empty plate, exact updates": bad(ModelError, "'groups' of the model", model=no_groups,
                                      guide="cavi"),
}  # fmt: skip


@pytest.fixture
def untouched() -> Iterator[Callable[..., None]]:
    """Fails where a callback is called, or the global state is not what it was."""
    store = pyro.get_param_store()
    mine = pyro.param("loc", torch.tensor(7.0))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    def callback(progress: Any) -> None:
        raise AssertionError("a step was taken")

    yield callback
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert dict(store.items()) == {"loc": mine}


@pytest.mark.parametrize("case", CASES)
def test_refused_before_the_first_step(case, untouched):
    arguments, error, words = CASES[case]
    with pytest.raises(error, match=f"(?s){words}") as caught:
        fit(**{"progress": False, "steps": 3, **arguments}, callbacks=[untouched])
    message = str(caught.value)
    print(f"{case}: {type(caught.value).__name__}: {message}")
    assert "\n" not in message and len(message) < 450
    assert message.endswith(".")


def test_every_fit_looks_at_its_own_data():
    """The programs and shapes are known from the first fit, the values are not."""
    fit(model, guide, X, steps=1, progress=False)
    with pytest.raises(DataError, match="'x'"):
        fit(model, guide, torch.full_like(X, float("inf")), steps=1, progress=False)


def test_one_function_as_callbacks():
    with pytest.raises(TypeError, match=r"callbacks=\[function\]"):
        fit(model, guide, X, callbacks=lambda progress: None, progress=False)


def test_a_guide_registered_without_a_builder():
    with pytest.raises(TypeError, match=r"'zz'.*a function that returns a guide, not 3"):
        register_guide("zz", 3)  # type: ignore[arg-type]


def line(x: Any, y: Any = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def test_lists_of_numbers_are_data_wherever_they_stand():
    result = fit(line, "normal", ([1.0, 2.0], [2.0, 3.0]), steps=3, seed=0, progress=False)
    assert result.predict([1.0, 2.0, 3.0], num_samples=5)["y"].shape == (5, 3)
    with pytest.raises(DataError, match="'y' is observed in the fit, but not with this data"):
        result.log_evidence(10, data=[1.0, 2.0])
