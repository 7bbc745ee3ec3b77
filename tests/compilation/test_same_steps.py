"""Captured and compiled steps are the eager ones: the same draws give the same bound and gradient.

Losses of a short run compare bounds in every step; they would part after the first step if gradients
differed. Captured steps call the operations of eager ones: they agree to the rounding of an optimizer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_vi import (
    ELBO,
    ControlVariate,
    DisARM,
    Enumerate,
    Expectation,
    FitResult,
    ForwardKL,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    NeuralBaseline,
    Pathwise,
    Relax,
    RenyiELBO,
    ScoreFunction,
    ScoreFunctionELBO,
    evaluation,
    fit,
    running,
)
from ppl_vi.compilation import choosing
from ppl_vi.guides import EncoderGuide, FlowGuide, GMMGuide, LaplaceGuide, MixtureGuide
from ppl_vi.models import VAE, BayesianGMM
from ppl_vi.networks import perceptron_encoder

POSITIVE = dist.constraints.positive
X = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)) + 1.0


def regression(x: Tensor) -> None:
    """Learned parameters in the model, a Gamma and a Dirichlet latent, a Cholesky factor."""
    noise = pyro.sample("noise", dist.Gamma(2.0, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    factor = pyro.param("factor", torch.eye(3), constraint=dist.constraints.lower_cholesky)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(weights, scale_tril=noise * factor), obs=x)


class Norm(nn.Module):
    """Batch norm and dropout: buffers that move, and randomness inside a module."""

    def __init__(self) -> None:
        super().__init__()
        # Without a bias, whose gradient would be nothing but rounding errors: the norm takes it out.
        first = nn.Linear(3, 4, bias=False)
        self.layers = nn.Sequential(first, nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3))
        self.loc, self.scale = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(x)
        return self.loc(hidden), self.scale(hidden).exp()


class Registered:
    """A model and a guide whose modules are registered through ``pyro.module``."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder, self.decoder = Norm(), nn.Linear(2, 3)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class Line(PyroModule):
    """A model that is a module: ``PyroSample``, ``PyroParam``, ``nn.Parameter`` and a buffer."""

    def __init__(self) -> None:
        super().__init__("line")
        self.slope = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraint=POSITIVE)
        self.offset = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Any:
        slope = self.slope
        with pyro.plate("data", len(x)):
            mean = (x * slope).sum(-1) + self.offset + self.shift
            return pyro.sample("y", dist.Normal(mean, self.noise), obs=x[:, 0])

    @pyro_method
    def guide(self, x: Tensor) -> None:
        loc = pyro.param("slope_loc", torch.zeros(3))
        scale = pyro.param("slope_scale", torch.ones(3), constraint=POSITIVE)
        pyro.sample("line.slope", dist.Normal(loc, scale).to_event(1))


def switch(x: Tensor) -> None:
    """A discrete latent for each row."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(3 * z - 1, 1.0), obs=x[:, 0])


def switch_guide(x: Tensor) -> None:
    """Draws the discrete latent from what a row says."""
    a = pyro.param("a", torch.tensor(2.0), constraint=POSITIVE)
    pyro.sample("p", dist.Beta(a, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.1)) * x[:, 0]))


def rate(x: Tensor) -> None:
    """A Gamma latent, whose weak derivative needs a function that torch lacks."""
    latent = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(latent), obs=x[:, 0])


def rate_guide(x: Tensor) -> None:
    shape = pyro.param("shape", torch.tensor(3.0), constraint=POSITIVE)
    pyro.sample("rate", dist.Gamma(shape, 2.0))


DATA = torch.cat([X[:, :2] - 3, X[:, :2] + 3])


def first_column(x: Tensor) -> Tensor:
    return x[:, :1]


def gmm(guide: str | None = None, batch_size: int | None = None, **options: Any) -> dict[str, Any]:
    model = BayesianGMM(2, **options)
    made: Any = guide or GMMGuide(model, len(DATA))
    return {"model": model, "guide": made, "data": DATA, "batch_size": batch_size}


def of_switch(**options: Any) -> dict[str, Any]:
    return {"model": switch, "guide": switch_guide, "data": X, **options}


def registered() -> dict[str, Any]:
    made = Registered()
    return {"model": made.model, "guide": made.guide, "data": X, "batch_size": 8}


def line() -> dict[str, Any]:
    made = Line()
    return {"model": made, "guide": made.guide, "data": X}


def autoencoder(prior: str = "normal", scale: str = "diagonal") -> dict[str, Any]:
    torch.manual_seed(0)
    model = VAE((3,), 2, likelihood="gaussian", prior=prior, hidden=[4])
    guide = EncoderGuide(perceptron_encoder((3,), 2, [4], scale))
    return {"model": model, "guide": guide, "data": X, "batch_size": 8}


FAMILIES: dict[str, Callable[[], Any]] = {
    "laplace": lambda: LaplaceGuide(regression),
    "mixture": lambda: MixtureGuide(regression, num_components=2, num_searches=1),
    "flow": lambda: FlowGuide(regression, num_transforms=2, num_searches=1),
    "affine flow": lambda: FlowGuide(regression, kind="affine", num_searches=1),
}
NETWORK = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
SITES = {
    "score": ScoreFunction(None),
    "leave one out": ScoreFunction(LeaveOneOut()),
    "moving average": ScoreFunction(MovingAverage()),
    "control variate": ScoreFunction(ControlVariate()),
    "neural": ScoreFunction(NeuralBaseline(NETWORK, inputs=first_column)),
    "enumerate": Enumerate(),
    "disarm": DisARM(),
    "measure valued": MeasureValued(),
    "relax": Relax(),
}
GUIDES = ("normal", "multivariate_normal", "lowrank", "delta")
MIXTURES: dict[str, dict[str, Any]] = {
    "textbook": {},
    "dirichlet": {"pi": "dirichlet"},
    "learned": {"pi": "learned", "tau": "learned", "sigma": "learned"},
    "spherical": {"sigma": "spherical"},
    "diagonal": {"sigma": "diagonal"},
    "full": {"sigma": "full", "pi": "dirichlet"},
}
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"{n}, {g}": partial(gmm, g, **o) for n, o in MIXTURES.items() for g in GUIDES},
    **{f"{n}, rows drawn": partial(gmm, **o) for n, o in MIXTURES.items() if n != "full"},
    "minibatches": partial(gmm, "normal", 20),
    "minibatches, rows drawn": partial(gmm, None, 20),
    "module": registered,
    "pyro module": line,
    "regression": lambda: {"model": regression, "guide": "normal", "data": X},
    **{
        f"regression, {n}": lambda made=made: {"model": regression, "guide": made(), "data": X}
        for n, made in FAMILIES.items()
    },
    "autoencoder": autoencoder,
    "autoencoder, full": partial(autoencoder, scale="full"),
    "autoencoder, mixture": partial(autoencoder, prior="mixture"),
    "kl schedule": lambda: {**autoencoder(), "kl_schedule": lambda step: step / 8},
    "loader": lambda: {**registered(), "batch_size": None, "data": loader()},
    **{
        f"z: {name}": partial(of_switch, objective=ELBO(num_particles=4, estimators={"z": site}))
        for name, site in SITES.items()
    },
    "one particle": partial(
        of_switch, objective=ELBO(1, estimators={"z": ScoreFunction(ControlVariate())})
    ),
    "gamma: measure valued": lambda: {
        "model": rate,
        "guide": rate_guide,
        "data": X.round().abs(),
        "objective": ELBO(num_particles=4, estimators=MeasureValued()),
    },
    "landing": lambda: {
        **line(),
        "objective": ELBO(4, estimators=Pathwise(stick_the_landing=True)),
    },
    "recipe": partial(of_switch, objective=ScoreFunctionELBO()),
    "importance weighted": partial(of_switch, objective=ImportanceWeightedELBO(K=3)),
    "doubly": lambda: {
        **line(),
        "objective": ImportanceWeightedELBO(K=3, doubly_reparameterized=True),
    },
    "renyi": partial(of_switch, objective=RenyiELBO(alpha=0.5, K=3)),
    "forward": partial(of_switch, objective=ForwardKL(K=4)),
    "expectation": partial(of_switch, objective=Expectation(lambda p: -((p - 0.2) ** 2))),
    "adagrad": partial(of_switch, optimizer=partial(torch.optim.Adagrad, lr=0.1)),
    "pyro's optimizer": partial(of_switch, optimizer=pyro.optim.ClippedAdam({"lr": 0.1})),
}
SLOW = [f"{n}, {g}" for n in MIXTURES for g in GUIDES if n != "textbook" and g != "normal"]
SLOW += ["autoencoder, full", "autoencoder, mixture", "regression, affine flow"]
SLOW += ["regression, flow", "loader"]
"""The default run captures every mixture with one guide, and every guide with one mixture."""


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X), batch_size=8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _few_draws_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks for the bound after the last step, which takes longer than the steps."""
    monkeypatch.setattr(evaluation, "_MOST_DRAWS", 2)
    monkeypatch.setattr(running, "_BOUND_EVALUATIONS", 2)


def taken(setting: Callable[[], dict[str, Any]], compile: Any, steps: int = 8) -> FitResult:
    return fit(**setting(), steps=steps, compile=compile, seed=0, progress=False)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SETTINGS]
)
def test_captured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 1)
    eager, captured = taken(SETTINGS[name], False), taken(SETTINGS[name], "auto")
    assert captured.execution.mode == "captured", captured.execution
    # The first bound is bitwise the same. Processors may round an optimizer's sums differently where
    # it moves parameters one by one and all in a row.
    torch.testing.assert_close(captured.losses[:1], eager.losses[:1], rtol=0, atol=0)
    assert_same(captured, eager, 2e-6)


def assert_same(one: FitResult, other: FitResult, tolerance: float) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.params, other.params, rtol=tolerance, atol=tolerance)
    for live in (one, other):
        live.fitted.restore()
    for mine, yours in zip(one.fitted.values, other.fitted.values, strict=True):  # buffers too
        torch.testing.assert_close(mine, yours, rtol=tolerance, atol=tolerance)
    for name, state in one.states.items():
        for mine, yours in zip(state, other.states[name], strict=True):
            if mine is not None and yours is not None:
                torch.testing.assert_close(
                    mine.state_dict(), yours.state_dict(), rtol=tolerance, atol=tolerance
                )


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_compiled(name: str) -> None:
    eager, compiled = taken(SETTINGS[name], False), taken(SETTINGS[name], True)
    assert compiled.execution.mode == "compiled"
    # One step's relative error is 1e-6; eight of Adam's, whose first divide by a gradient's own
    # size, add to it.
    assert_same(compiled, eager, 1e-4)
    torch.testing.assert_close(compiled.losses[:3], eager.losses[:3], rtol=1e-5, atol=1e-5)
    again = taken(SETTINGS[name], True)
    assert_same(again, compiled, 0.0)
