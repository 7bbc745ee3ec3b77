"""Gradient estimators against each other, at the same number of model evaluations.

Every row compares two total variances of one gradient (summed over parameters), the first of which
should be the smaller one. Gradients are drawn one after the other from fixed seeds, in float64.

Usage: python -m benchmarks.gradient_variance [--gradients N] [--output MD]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi import (
    ELBO,
    ControlVariate,
    DisARM,
    Enumerate,
    Expectation,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Objective,
    Pathwise,
    Relax,
    ScoreFunction,
)
from ppl_vi.drawing import draw_with
from ppl_vi.preparation import prepare
from ppl_vi.program import Dependencies, Pair
from ppl_vi.surrogate import surrogate

Program = Callable[[], Any]
LOO = ScoreFunction(LeaveOneOut())
X = torch.linspace(-1.5, 2.5, 20, dtype=torch.float64)


def rows() -> None:
    """A mixture of two known Normals: a Bernoulli latent for each of 20 rows."""
    with pyro.plate("data", len(X)):
        z = pyro.sample("z", dist.Bernoulli(torch.full((len(X),), 0.4)))
        pyro.sample("x", dist.Normal(2 * z - 0.5, 1.0), obs=X)


def rows_guide() -> None:
    """Its mean-field guide."""
    logits = pyro.param("logits", 0.5 * X)
    with pyro.plate("data", len(X)):
        pyro.sample("z", dist.Bernoulli(logits=logits))


def conjugate() -> None:
    """Normal mean, Normal observation: the posterior is Normal(1, sqrt(1/2))."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(2.0))


def normal_guide(shift: float) -> Program:
    """A guide whose mean is off by ``shift``."""

    def guide() -> None:
        scale = pyro.param("log_scale", torch.tensor(0.5).log() / 2).exp()
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(1.0 + shift)), scale))

    return guide


def chain() -> None:
    """A Bernoulli latent, then a Normal one."""
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
    w = pyro.sample("w", dist.Normal(z, 1.0))
    pyro.sample("x", dist.Normal(1.2 * w, 1.0), obs=torch.tensor(1.4))


def chain_guide() -> None:
    """Its guide: the Normal depends on the Bernoulli."""
    z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))
    off, on = pyro.param("off", torch.tensor(-0.2)), pyro.param("on", torch.tensor(0.9))
    pyro.sample("w", dist.Normal(torch.where(z > 0.5, on, off), 0.6))


def toy(logit: float) -> Program:
    """One Bernoulli."""

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(logit))))

    return guide


def variance(objective: Objective, model: Program, guide: Program, count: int) -> float:
    """The total variance of one gradient; what the objective learns is learned before."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective.loss(model, guide)
    found = [_gradient(objective.differentiable_loss(model, guide)) for _ in range(200 + count)]
    return float(torch.stack(found[200:]).var(0).sum())


def plain_variance(objective: Objective, model: Program, guide: Program, count: int) -> float:
    """The same with all factors as credit, in no plate: no Rao-Blackwellization."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = Pair(model, guide, (), {})
    plan = prepare(objective, pair)
    if plan.dependencies is None:
        raise ValueError("the objective uses no credit")
    every = frozenset(plan.dependencies.plates)
    sites = plan.structure.drawn
    mixed = {name: frozenset(plan.structure.sites[name].plates) for name in sites}
    crude = Dependencies(dict.fromkeys(sites, every), mixed, plan.dependencies.plates)
    plan = replace(plan, dependencies=crude)
    found = [
        _gradient(surrogate(objective, draw_with(plan, pair), plan, {})[1]) for _ in range(count)
    ]  # type: ignore[arg-type]
    return float(torch.stack(found).var(0).sum())


def _gradient(total: Tensor) -> Tensor:
    parameters = [parameter for _, parameter in pyro.get_param_store().named_parameters()]
    gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


Comparison = tuple[str, Callable[[int], float], str, Callable[[int], float]]


def comparisons() -> list[Comparison]:
    """What should be less noisy, and than what."""

    def of(objective: Objective, model: Program, guide: Program) -> Callable[[int], float]:
        return lambda count: variance(objective, model, guide, count)

    sampled = ELBO(8, ScoreFunction(), analytic=False)
    at_posterior, near = normal_guide(0.0), normal_guide(0.1)
    made: list[Comparison] = [
        (
            "credit downstream and within plates (20 rows)",
            of(sampled, rows, rows_guide),
            "plain score function",
            lambda count: plain_variance(sampled, rows, rows_guide, count),
        ),
        (
            "leave-one-out (20 rows)",
            of(ELBO(8, LOO, analytic=False), rows, rows_guide),
            "no baseline",
            of(sampled, rows, rows_guide),
        ),
    ]
    for t in (0.45, 0.499):
        for logit in (-1.0, 0.0, 0.5):

            def squared(b: Tensor, t: float = t) -> Tensor:
                return (b - t) ** 2

            made.append(
                (
                    f"DisARM, one pair, E[(b - {t})²] at logit {logit}",
                    of(Expectation(squared, 2, DisARM()), toy(logit), toy(logit)),
                    "leave-one-out, two particles",
                    of(Expectation(squared, 2, LOO), toy(logit), toy(logit)),
                )
            )
    made += [
        (
            "pathwise (Normal)",
            of(ELBO(8, Pathwise()), conjugate, near),
            "score function",
            of(ELBO(8, ScoreFunction()), conjugate, near),
        ),
        (
            "sticking the landing, at the optimum",
            of(ELBO(8, Pathwise(stick_the_landing=True)), conjugate, at_posterior),
            "plain pathwise",
            of(ELBO(8, Pathwise()), conjugate, at_posterior),
        ),
        (
            "doubly reparameterized, K = 64, near the optimum",
            of(ImportanceWeightedELBO(64, 1, doubly_reparameterized=True), conjugate, near),
            "plain importance-weighted",
            of(ImportanceWeightedELBO(64, 1), conjugate, near),
        ),
    ]
    score = of(ELBO(8, {"z": ScoreFunction()}), chain, chain_guide)
    for name, estimator in {
        "moving average": ScoreFunction(MovingAverage()),
        "control variate": ScoreFunction(ControlVariate()),
        "leave-one-out": LOO,
        "Relax, after 200 steps": Relax(),
        "DisARM": DisARM(),
        "measure-valued (3 evaluations for 1)": MeasureValued(),
        "enumeration (2 evaluations for 1)": Enumerate(),
    }.items():
        objective = ELBO(8, {"z": estimator})
        made.append(
            (f"{name} (chain)", of(objective, chain, chain_guide), "no baseline (chain)", score)
        )
    return made


def main() -> None:
    """Measure every comparison, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gradients", type=int, default=2_000)
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    table = []
    for name, less, other, more in tqdm(comparisons(), unit="comparison", disable=None):
        small, large = less(options.gradients), more(options.gradients)
        holds = "yes" if small <= large else "no"
        row = {"less noisy": name, "variance": small, "than": other, "its variance": large}
        table.append({**row, "ratio": small / large, "holds": holds})
    frame = pd.DataFrame(table)
    for column in ("variance", "its variance", "ratio"):
        frame[column] = [f"{value:.3g}" if value > 1e-20 else "0" for value in frame[column]]
    error = (4 / options.gradients) ** 0.5
    print(f"\n{options.gradients} gradients each: a ratio is known to about {error:.0%} or more.\n")
    print(frame.to_string(index=False))
    if options.output is not None:
        cells = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
        options.output.write_text("".join(f"| {' | '.join(row)} |\n" for row in cells))


if __name__ == "__main__":
    main()
