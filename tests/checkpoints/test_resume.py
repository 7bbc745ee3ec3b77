"""A fit that was cut goes on bit for bit, wherever it was cut."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from ppl_vi import ELBO, FitResult, NeuralBaseline, Relax, ScoreFunction, fit
from ppl_vi.checkpoints import keeping
from ppl_vi.compilation import choosing
from ppl_vi.estimators import ControlVariate, MovingAverage
from ppl_vi.guides import CAVIGuide, EncoderGuide
from ppl_vi.models import BayesianGMM, ConjugateGMM

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 3.0])


def regression(x: Tensor) -> None:
    one = x.new_ones(())
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 5.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0 * one, one))
    width = pyro.param("width", one, dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, scale * width), obs=x[:, 1] + x[:, 0] ** 2)


def coins(x: Tensor) -> None:
    with pyro.plate("data", 60, subsample_size=len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x[:, 0])


def coin_guide(x: Tensor) -> None:
    weight, bias = pyro.param("weight", torch.zeros(2)), pyro.param("bias", torch.tensor(0.1))
    with pyro.plate("data", 60, subsample_size=len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x @ weight + bias))


class Network(PyroModule):
    """A model with dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 60, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.network(z), 1.0).to_event(1), obs=x)


def normed() -> tuple[Any, Any]:
    """A batch norm and a spectral norm inside a function."""
    norm = nn.BatchNorm1d(2)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 1))

    def model(x: Tensor) -> None:
        pyro.module("layer", layer), pyro.module("norm", norm)
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(layer(norm(x)).squeeze(-1) + shift, 1.0), obs=x[:, 0])

    return model, "normal"


def encoded() -> tuple[Any, Any]:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            loc, width = self.layer(x).chunk(2, -1)
            return loc, width.exp()

    return Network(), EncoderGuide(Encoder(), "z")


def hybrid(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))  # left to gradients
    width = pyro.param("width", torch.tensor(1.0), dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale * width), obs=x[:, 0])


def walled(x: Tensor) -> None:
    """Steps that are too long jump over the wall at 5."""
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=4.0 + 0.0 * x[:, 0])
    pyro.factor("wall", (5.0 - z).log())


def narrow(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.01))


def scheduled(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda parameters: make(torch.optim.Adam(parameters, lr=0.05))


def score(baseline: Any) -> dict[str, Any]:
    return {"objective": ELBO(2, estimators={"z": ScoreFunction(baseline)}), "batch_size": 20}


def rooted(x: Tensor) -> None:
    """Where the root is 0, its gradient is not finite."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("root", (z + 1.0).relu().sqrt())


def wide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


Case = tuple[Callable[[], tuple[Any, Any]], Any, dict[str, Any]]


def plain() -> tuple[Any, Any]:
    return regression, "normal"


def two_coins() -> tuple[Any, Any]:
    return coins, coin_guide


def loader(**options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(TensorDataset(X), batch_size=20, shuffle=True, **options)


CASES: dict[str, Case] = {
    "plain": (plain, X, {}),
    "float64": (plain, X.double(), {"guide": "lowrank"}),
    "batches": (lambda: (BayesianGMM(2), "normal"), X, {"batch_size": 25}),
    "loader": (lambda: (BayesianGMM(2), "normal"), loader(), {}),
    "laplace": (lambda: (regression, "laplace"), X, {}),
    "an autoguide": (lambda: (regression, AutoNormal(regression)), X, {}),
    "Pyro's objective": (two_coins, X, {"objective": pyro.infer.TraceGraph_ELBO()}),
    "AdamW": (plain, X, {"optimizer": torch.optim.AdamW}),
    "SGD": (plain, X, {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)}),
    "RMSprop": (plain, X, {"optimizer": torch.optim.RMSprop}),
    "one cycle": (plain, X, {"optimizer": scheduled(
        lambda adam: schedules.OneCycleLR(adam, 0.1, total_steps=200))}),
    "plateau": (plain, X, {"optimizer": scheduled(
        lambda adam: schedules.ReduceLROnPlateau(adam, patience=2))}),
    "search": (plain, X, {"optimizer": "search"}),
    "Pyro's ClippedAdam": (plain, X, {"optimizer": pyro.optim.ClippedAdam({"lr": 0.05})}),
    "weights on KL": (plain, X, {"kl_schedule": lambda step: min(1.0, step / 30)}),
    "rollback": (lambda: (walled, narrow), X[:12], {
        "on_nan": "rollback", "optimizer": lambda p: schedules.ExponentialLR(
            torch.optim.Adam(p, lr=3.0), 0.999),
        "objective": ELBO(2), "steps": 250, "checkpoint_every": 60}),
    "rollback, Pyro's": (lambda: (walled, narrow), X[:12], {
        "on_nan": "rollback", "optimizer": pyro.optim.SGD({"lr": 0.15}),
        "objective": ELBO(2), "steps": 250, "checkpoint_every": 60}),
    "skip": (lambda: (rooted, wide), X, {"on_nan": "skip"}),
    "neural baseline": (two_coins, X, score(NeuralBaseline(nn.Linear(2, 1)))),
    "moving average": (two_coins, X, score(MovingAverage())),
    "control variate": (two_coins, X, score(ControlVariate())),
    "Relax": (two_coins, X, {"objective": ELBO(estimators={"z": Relax()})}),
    "dropout and batch norm": (encoded, X, {"batch_size": 20}),
    "norms in a function": (normed, X, {}),
    "restarts": (plain, X, {"restarts": 3}),
    "restarts of modules": (encoded, X, {"batch_size": 20, "restarts": 3}),
    "exact updates": (
        lambda: (ConjugateGMM(3), "cavi"), X, {"steps": 12, "checkpoint_every": 7}),
    "exact updates in batches": (
        lambda: ((made := ConjugateGMM(2)), CAVIGuide(made)), X, {"batch_size": 25}),
    "exact updates from a loader": (lambda: (ConjugateGMM(2), "cavi"), loader(), {}),
    "exact updates and gradients": (lambda: (hybrid, "cavi"), X, {"steps": 6}),
    "restarts of exact updates": (lambda: (ConjugateGMM(3), "cavi"), X, {"restarts": 3, "steps": 9}),
}  # fmt: skip


def fitted(case: Case, **more: Any) -> FitResult:
    make, data, options = case
    torch.manual_seed(3)
    model, guide = make()
    settings = {"steps": 40, "checkpoint_every": 15, "tol": None, "guide": guide, **options}
    settings |= {"seed": 0, "progress": False, **more}
    if "guide" in options:
        settings["guide"] = options["guide"]
    return fit(model, data=data() if callable(data) else data, **settings)


def all_checkpoints(case: Case, folder: Path, monkeypatch: Any, **more: Any) -> list[Path]:
    """Every checkpoint of a fit that nobody cuts."""
    found: list[Path] = []

    def write(path: Path, state: Any) -> None:
        keep(path, state)
        found.append(folder / f"{len(found)}.ckpt")
        shutil.copy(path, found[-1])

    keep = keeping.write
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "write", write)
        fitted(case, checkpoint=folder / "run.ckpt", **more)
    return found


def assert_same(one: FitResult, other: FitResult) -> None:
    assert one.params.keys() == other.params.keys()
    for name, value in one.params.items():
        assert torch.equal(value, other.params[name]), name
    for value, found in zip(one.fitted.values, other.fitted.values, strict=True):
        assert torch.equal(value, found)
    torch.testing.assert_close(one.losses, other.losses, rtol=0, atol=0, equal_nan=True)
    assert (one.bound, one.elbo, one.stop_reason) == (other.bound, other.elbo, other.stop_reason)
    assert one.elbo.standard_error == other.elbo.standard_error
    assert [str(r) for r in one.restarts] == [str(r) for r in other.restarts]
    assert str(one.convergence) == str(other.convergence)
    assert one.execution.mode == other.execution.mode
    guides = [getattr(each.job.guide, "tensors", tuple)() for each in (one, other)]
    for value, found in zip(*guides, strict=True):
        assert torch.equal(value, found)


QUICK = {("neural baseline", "auto"), ("exact updates", "auto")}
EVERY = [(name, compile) for name in CASES for compile in (False, "auto")]


@pytest.mark.parametrize(
    ("name", "compile"),
    [pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow) for one in EVERY],
)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
@pytest.mark.filterwarnings("ignore:.*still climbed:UserWarning", "ignore:.*last sweep:UserWarning")
@pytest.mark.filterwarnings("ignore:captured steps, now eager")
def test_it_goes_on_from_every_checkpoint(
    name: str, compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 1)
    monkeypatch.setattr(choosing, "repays", lambda graph, steps: False)
    case = CASES[name]
    whole = fitted(case, compile=compile)
    for path in all_checkpoints(case, tmp_path, monkeypatch, compile=compile):
        shutil.copy(path, tmp_path / "cut.ckpt")
        result = fitted(case, compile=compile, checkpoint=tmp_path / "cut.ckpt", resume=True)
        assert_same(result, whole)
    assert len(pyro.get_param_store()) == 0
