"""Programs with the usual mistakes, in several variants; `test_errors.py` has what is said."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.distributions import constraints
from torch import Tensor

X = torch.linspace(-1.0, 2.0, 12)
MATRIX = torch.linspace(-1.0, 1.0, 36).reshape(12, 3)
LABELS = torch.arange(12).remainder(3)
BATCHES = {"batch_size": 4}
FAR = torch.ones(3, device="meta")

CASES: dict[str, dict[str, Any]] = {}
"""Arguments of ``fit`` by the name of the mistake."""


def mistake(
    name: str, guide: Any = "normal", data: Any = X, **options: Any
) -> Callable[[Any], Any]:
    """The program is a model with a mistake, fitted so."""

    def enter(model: Any) -> Any:
        CASES[name] = {"model": model, "guide": guide, "data": data, **options}
        return model

    return enter


def bad_guide(name: str, model: Any, data: Any = X, **options: Any) -> Callable[[Any], Any]:
    """The program is a guide with a mistake, for a good model."""

    def enter(guide: Any) -> Any:
        CASES[name] = {"model": model, "guide": guide, "data": data, **options}
        return guide

    return enter


def weights() -> Tensor:
    return pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def good(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def good_vector(x: Tensor) -> None:
    w = weights()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


def good_local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def good_scale(x: Tensor) -> None:
    width = pyro.sample("width", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, width), obs=x)


# Forgotten .to_event()


@mistake("to_event of a latent", data=MATRIX)
@mistake("to_event of a latent, exact updates", "cavi", MATRIX)
def vector_latent(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


@mistake("to_event of the data", data=MATRIX)
@mistake("to_event of the data in batches", data=MATRIX, **BATCHES)
@mistake("to_event of the data, an autoguide", pyro.infer.autoguide.AutoNormal, MATRIX)
def vector_data(x: Tensor) -> None:
    w = weights()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.expand(x.shape), 1.0), obs=x)


@mistake("to_event of data, one number expected", "cavi", MATRIX)
def scalar_for_vectors(x: Tensor) -> None:
    good(x)


@bad_guide("to_event in the guide", good_vector, MATRIX)
def vector_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0))


# No plate over the data


@mistake("no plate")
@mistake("no plate, exact updates", "cavi")
@mistake("no plate in batches", **BATCHES)
def no_plate(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@mistake("no plate in a regression", data=(MATRIX, X))
def no_plate_regression(x: Tensor, y: Tensor) -> None:
    pyro.sample("y", dist.Normal(x @ weights(), 1.0), obs=y)


@bad_guide("no plate in the guide", good_local)
@bad_guide("no plate in the guide, in batches", good_local, **BATCHES)
def no_plate_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.tensor(1.0)), 1.0))


# A batch that counts twice, or never, for all rows


@mistake("scaled twice", **BATCHES)
@mistake("scaled twice, exact updates", "cavi", **BATCHES)
def scaled_twice(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=12 / len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@mistake("never scaled", data=(MATRIX, X), **BATCHES)
def never_scaled(x: Tensor, y: Tensor) -> None:
    w = weights()
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@mistake("a plate of a fixed batch", data=X, **BATCHES)
def fixed_batch(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@mistake("scaled up without batches")
def scaled_up(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1200, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


# Subsampled in the model and by fit


@mistake("subsampled twice", **BATCHES)
def subsampled_twice(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 12, subsample_size=3) as rows:
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])


@mistake("a batch subsampled", **BATCHES)
def batch_subsampled(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])


# Enumeration without room


def labelled(x: Tensor, locate: Callable[[Tensor, Tensor], Tensor]) -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(locate(means, z), 1.0), obs=x)


@mistake("enumeration and reshape")
@mistake("enumeration and reshape in batches", **BATCHES)
@mistake("enumeration and reshape, exact updates", "cavi")
def reshaped(x: Tensor) -> None:
    labelled(x, lambda means, z: means[z.reshape(len(x))])


@mistake("enumeration and if")
def branching(x: Tensor) -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(means[0] if z else means[1], 1.0), obs=x)


@mistake("enumeration of a long chain", data=torch.zeros(70))
def long_chain(x: Tensor) -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = torch.tensor(0)
    for t in range(len(x)):
        z = pyro.sample(f"z{t}", dist.Categorical(torch.eye(2)[z] + 1.0))
        pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[t])


@mistake("too few dimensions for Pyro", objective=pyro.infer.TraceEnum_ELBO(max_plate_nesting=0))
def mixture(x: Tensor) -> None:
    labelled(x, lambda means, z: means[z])


# Rows that depend on each other


@mistake("a series in one plate")
@mistake("a series in one plate, exact updates", "cavi")
def series(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(x) - 1):
        pyro.sample("x", dist.Normal(slope * x[:-1], 1.0), obs=x[1:])


@mistake("a series in one plate, in batches", **BATCHES)
def series_in_batches(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(x)):
        pyro.sample("x", dist.Normal(slope * x.roll(1), 1.0), obs=x)


# A scale of 0


@bad_guide("a scale of 0 in the guide", good)
@bad_guide("a scale of 0 in the guide, in batches", good, **BATCHES)
def zero_in_guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.0), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))


@mistake("a scale of 0 in the model")
@mistake("a scale of 0 in the model, exact updates", "cavi")
def zero_in_model(x: Tensor) -> None:
    noise = pyro.param("noise", torch.tensor(0.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, noise), obs=x)


class StartsAt:
    """A good model that starts somewhere."""

    def __init__(self, model: Any, **values: Any) -> None:
        self.model, self.values = model, values

    def __call__(self, x: Tensor) -> None:
        self.model(x)

    def initial_values(self, x: Tensor) -> dict[str, Any]:
        return self.values


mistake("a scale that starts at 0")(StartsAt(good_scale, width=0.0))
mistake("a start of another shape")(StartsAt(good, mean=torch.zeros(3)))
mistake("a start that is misspelt")(StartsAt(good, maen=0.0))
mistake("a start that is misspelt, exact updates", "cavi")(StartsAt(good, maen=0.0))


# Supports


@bad_guide("a support that is too wide", good_scale)
@bad_guide("a support that is too wide, in batches", good_scale, **BATCHES)
def too_wide(x: Tensor) -> None:
    pyro.sample("width", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))


@mistake("data outside the support")
@mistake("data outside the support, exact updates", "cavi")
def negative_counts(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


@mistake("a latent outside a parameter's range")
def negative_scale(x: Tensor) -> None:
    width = pyro.sample("width", dist.Normal(-3.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, width), obs=x)


# Two precisions, two devices


@mistake("float64 data", data=(MATRIX.double(), X.double()))
@mistake("float64 data in batches", data=(MATRIX.double(), X.double()), **BATCHES)
@mistake("float64 data, exact updates", "cavi", (MATRIX.double(), X.double()))
@mistake("data on two devices", data=(MATRIX, X.to("meta")))
def regression(x: Tensor, y: Tensor) -> None:
    w = weights()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


CASES["float64 data that are promoted"] = {"model": good, "guide": "normal", "data": X.double()}


@mistake("a constant on another device", data=MATRIX)
@mistake("a constant on another device, exact updates", "cavi", MATRIX)
def far_constant(x: Tensor) -> None:
    w = weights() * FAR
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


# Labels as floats


@mistake("float labels", data=(MATRIX, LABELS.float()))
@mistake("float labels in batches", data=(MATRIX, LABELS.float()), **BATCHES)
def classified(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


@mistake("float labels as an index", data=(LABELS.float(), X))
@mistake("float labels as an index, exact updates", "cavi", (LABELS.float(), X))
@mistake("labels that count from 1", data=(LABELS + 1, X))
def grouped(group: Tensor, y: Tensor) -> None:
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean[group], 1.0), obs=y)


# What else is told


@mistake("obs forgotten")
@mistake("obs forgotten, exact updates", "cavi")
def nothing_observed(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0))


@mistake("an error of the model's own")
@mistake("an error of the model's own, an autoguide", pyro.infer.autoguide.AutoNormal)
def failing(x: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    x.frobnicate()  # type: ignore[attr-defined]


@mistake("effects narrower than the data", data=torch.zeros(3, 4))
def narrow(x: Tensor) -> None:
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(effect[:, None], 0.5).to_event(1), obs=x)
