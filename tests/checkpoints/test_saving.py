"""A fit that was saved and loaded is the same fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_vi import FitResult, fit
from ppl_vi.errors import CheckpointError
from ppl_vi.guides import CAVIGuide, EncoderGuide, FlowGuide, GMMGuide, MixtureGuide
from ppl_vi.models import BayesianGMM, ConjugateGMM

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 3.0])


def regression(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, scale), obs=x[:, 1] + x[:, 0] ** 2)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("slope", dist.Normal(loc, 0.1).to_event(1))
    spread = pyro.param("spread", torch.tensor(0.3), dist.constraints.positive)
    pyro.sample("scale", dist.LogNormal(0.0, spread))


class Decoder(PyroModule):
    """A model with a module, whose batch norm keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 60, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.network(z), 1.0).to_event(1), obs=x)


class Encoder(nn.Module):
    """Two numbers in, a location and a scale out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, width = self.layer(x).chunk(2, -1)
        return loc, width.exp()


def decoder_and_encoder() -> tuple[Any, Any]:
    torch.manual_seed(7)
    return Decoder(), EncoderGuide(Encoder(), "z")


Case = tuple[Callable[[], tuple[Any, Any]], Any, dict[str, Any]]
NAMED = ("normal", "multivariate_normal", "lowrank", "delta", "laplace", "structured")
CASES: dict[str, Case] = {
    **{name: (lambda name=name: (regression, name), X, {}) for name in NAMED},  # type: ignore[misc]
    "mixture": (lambda: (regression, MixtureGuide(regression, num_searches=1)), X, {}),
    "flow": (lambda: (regression, FlowGuide(regression, num_searches=1)), X, {}),
    "a function": (lambda: (regression, guide), X, {}),
    "a class": (lambda: (regression, AutoDiagonalNormal), X, {}),
    "of several": (lambda: (BayesianGMM(2), GMMGuide(BayesianGMM(2))), X, {}),
    "batches": (lambda: (BayesianGMM(2), "normal"), X, {"batch_size": 20}),
    "loader": (
        lambda: (BayesianGMM(2), "normal"),
        DataLoader(TensorDataset(X), batch_size=20, shuffle=True),
        {},
    ),
    "exact updates": (lambda: (ConjugateGMM(2), "cavi"), X, {"steps": 9}),
    "exact updates in batches": (
        lambda: ((made := ConjugateGMM(2)), CAVIGuide(made)),
        X,
        {"batch_size": 20, "steps": 9},
    ),
    "networks": (decoder_and_encoder, X, {"batch_size": 20}),
}


def fitted(name: str, seed: int = 0) -> FitResult:
    make, data, options = CASES[name]
    model, own = make()
    return fit(model, own, data, seed=seed, progress=False, **{"steps": 30, **options})


def drawn(result: FitResult) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return result.sample(3)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_same_fit(name: str, tmp_path: Path) -> None:
    result = fitted(name)
    result.save(tmp_path / "fit.ckpt")
    make, data, _ = CASES[name]
    state = torch.get_rng_state()
    again = FitResult.load(tmp_path / "fit.ckpt", *make(), data)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.params.keys() == result.params.keys()
    for key, value in result.params.items():
        assert torch.equal(again.params[key], value)
    for key, value in drawn(result).items():
        torch.testing.assert_close(drawn(again)[key], value, rtol=0.0, atol=0.0)
    assert torch.equal(again.losses, result.losses)
    assert repr(again) == repr(result)
    assert (again.bound, again.bound.standard_error) == (result.bound, result.bound.standard_error)
    assert str(again.convergence) == str(result.convergence)
    assert again.execution == result.execution
    assert len(pyro.get_param_store()) == 0


def test_another_process_reads_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch, pyro, pyro.distributions as dist\n"
        "from ppl_vi import FitResult, fit\n"
        "def model(x):\n"
        "    mean = pyro.sample('mean', dist.Normal(0.0, 10.0))\n"
        "    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('x', dist.Normal(mean, 1.0), obs=x)\n"
        "if sys.argv[1] == 'fit':\n"
        "    result = fit(model, data=torch.ones(9), steps=50, progress=False)\n"
        "    result.save('mean.ckpt')\n"
        "else:\n"
        "    result = FitResult.load('mean.ckpt', model, data=torch.ones(9))\n"
        "print(float(result.elbo), result.sample(3)['mean'].shape, float(result.mode()['mean']))\n"
    )
    told = [
        subprocess.run(
            [sys.executable, program, what],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for what in ("fit", "load")
    ]
    assert told[0] == told[1] != ""


def wider(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.StudentT(3.0, torch.zeros(2), 5.0).to_event(1))
    pyro.sample("more", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, scale), obs=x[:, 1])


@pytest.mark.parametrize(
    ("model", "own", "data", "differs"),
    [
        (wider, "normal", X, r"site 'slope' \(latent Normal.*StudentT.*site 'more' \(only here\)"),
        (regression, "lowrank", X, r"the guide \(NormalGuide in the file, LowRankGuide here\)"),
        (regression, "normal", X[:50], r"the number of rows \(60 in the file, 50 here\)"),
        (regression, "normal", X.double(), r"argument 0 \(rows of \(2,\), float32"),
        (regression, "normal", X + 1.0, r"argument 0 \(.*content .* in the file, .* here"),
    ],
)
def test_another_fit_is_refused(
    model: Any, own: Any, data: Any, differs: str, tmp_path: Path
) -> None:
    fitted("normal").save(tmp_path / "fit.ckpt")
    with pytest.raises(CheckpointError, match=f"fit.ckpt' is of another fit, .*{differs}"):
        FitResult.load(tmp_path / "fit.ckpt", model, own, data)
