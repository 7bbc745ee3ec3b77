"""Gradient estimators at training a sigmoid belief network on binarised digits.

200 Bernoulli latents in one linear layer with a learned prior, a linear decoder and a linear
amortised guide. Every estimator has the same start, batches, number of steps and, with two particles
a step, of model evaluations. Pixels are drawn once, with their grey value as probability
(Salakhutdinov and Murray, 2008), so that bounds compare with those of Dong, Mnih and Tucker (2020).

Usage: python -m benchmarks.sigmoid_belief_network [--data NPZ] [--output MD] [--epochs N]
       [--rates R [R ...]] [--seeds S [S ...]] [--estimators NAME [NAME ...]]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppl_vi import (
    ELBO,
    DisARM,
    Estimator,
    FitResult,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MovingAverage,
    Objective,
    Relax,
    ScoreFunction,
    fit,
)

DIGITS = Path(__file__).parents[2] / "shared" / "data" / "mnist10k.npz"
LATENTS, PIXELS, BATCH = 200, 784, 100
ESTIMATORS: dict[str, Estimator] = {
    "DisARM": DisARM(),
    "Relax": Relax(),
    "Relax over leave-one-out": Relax(baseline=LeaveOneOut()),
    "leave-one-out": ScoreFunction(LeaveOneOut()),
    "moving average": ScoreFunction(MovingAverage()),
    "no baseline": ScoreFunction(),
}


class Decoder(PyroModule):
    """The model: ``z ~ Bernoulli(prior)``, ``x ~ Bernoulli(W z + b)``, a row a digit."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__("decoder")
        self.prior = nn.Parameter(torch.zeros(LATENTS))
        # Other names than the guide's: modules are known to Pyro by the names of their parameters.
        self.decoder = PyroModule[nn.Linear](LATENTS, PIXELS)
        self.decoder.bias.data = mean.clamp(0.001, 0.999).logit()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("digits", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Encoder(PyroModule):
    """The guide: ``z ~ Bernoulli(V (x - mean) + c)``."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__("encoder")
        self.mean = mean
        self.encoder = PyroModule[nn.Linear](PIXELS, LATENTS)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("digits", len(x)):
            logits = self.encoder(x - self.mean)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


class Run(NamedTuple):
    """What one estimator reached, in nats a digit."""

    rate: float
    estimator: str
    seed: int
    test_elbo: float
    test_weighted: float
    training_elbo: float
    milliseconds: float


def main() -> None:
    """Train every estimator, print the table and write it."""
    options = _options()
    training, test = digits(options.data, options.rows, options.test_rows)
    wanted = list(itertools.product(options.seeds, options.rates, options.estimators))
    runs: list[Run] = []
    for seed, rate, name in tqdm(wanted, desc="runs", unit="run", disable=None):
        runs.append(trained(name, training, test, rate, seed, options))
        tqdm.write(f"{name}, rate {rate}, seed {seed}: test ELBO {runs[-1].test_elbo:.2f}")
        if options.output is not None:  # after each run: the whole takes long
            options.output.write_text(f"{_setting(options)}\n\n{markdown(summary(runs))}\n")
    print(f"\n{_setting(options)}\n\n{summary(runs).to_string(index=False)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DIGITS, help="NPZ with images [N, 28, 28]")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--rows", type=int, default=8_000, help="training digits")
    parser.add_argument("--test-rows", type=int, default=2_000, help="the last digits, held out")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="Adam's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), choices=ESTIMATORS)
    return parser.parse_args()


def digits(path: Path, rows: int, test_rows: int) -> tuple[Tensor, Tensor]:
    """``[rows, 784]`` and ``[test_rows, 784]`` of zeros and ones."""
    with np.load(path) as file:
        grey = torch.as_tensor(file["images"]).reshape(-1, PIXELS) / 255.0
    if rows + test_rows > len(grey):
        raise SystemExit(f"{path} has {len(grey)} digits, fewer than {rows} + {test_rows}.")
    drawn = torch.bernoulli(grey, generator=torch.Generator().manual_seed(0))
    return drawn[:rows], drawn[-test_rows:]


def trained(
    name: str, training: Tensor, test: Tensor, rate: float, seed: int, options: argparse.Namespace
) -> Run:
    """Train from a start that depends on the seed alone, and evaluate."""
    torch.manual_seed(seed)
    mean = training.mean(0)
    model, guide = Decoder(mean), Encoder(mean)
    result: FitResult = fit(
        model,
        guide,
        training,
        objective=ELBO(num_particles=2, estimators={"z": ESTIMATORS[name]}),
        optimizer=_adam(rate),
        steps=options.epochs * (len(training) // BATCH),
        tol=None,
        batch_size=BATCH,
        seed=seed,
        progress=False,
    )
    weighted = ImportanceWeightedELBO(K=100, num_particles=1)
    return Run(
        rate,
        name,
        seed,
        evaluated(ELBO(num_particles=100, estimators=ScoreFunction()), model, guide, test),
        evaluated(weighted, model, guide, test),
        result.elbo / len(training),
        1_000 * result.seconds / result.num_steps,
    )


def _adam(rate: float) -> Callable[[Iterator[Tensor]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def evaluated(objective: Objective, model: Any, guide: Any, rows: Tensor) -> float:
    """The bound in nats a row."""
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        return -sum(objective.loss(model, guide, part) for part in rows.split(BATCH)) / len(rows)


def summary(runs: list[Run]) -> pd.DataFrame:
    """The mean over seeds by rate and estimator, and how far the seeds are apart."""
    by = pd.DataFrame(runs).groupby(["rate", "estimator"], sort=False)
    means = by[["test_elbo", "test_weighted", "training_elbo", "milliseconds"]].mean()
    means.insert(1, "seeds apart by", by["test_elbo"].agg(lambda v: v.max() - v.min()))
    names = {
        "rate": "learning rate",
        "test_elbo": "test ELBO",
        "test_weighted": "test bound, K = 100",
        "training_elbo": "training ELBO",
        "milliseconds": "ms a step",
    }
    return means.round(2).reset_index().rename(columns=names)


def _setting(options: argparse.Namespace) -> str:
    return (
        f"{options.rows} training and {options.test_rows} test digits, {options.epochs} epochs of "
        f"batches of {BATCH}, 2 particles, Adam, seeds {', '.join(map(str, options.seeds))}; nats "
        f"a digit."
    )


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    main()
