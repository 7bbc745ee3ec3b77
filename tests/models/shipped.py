"""Shipped models with data drawn from each, in float64: ``case(name)`` is model, arguments, truth."""

# ruff: noqa: N806 (the names of the equations)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_vi.models import (
    BayesianLinearRegression,
    BernoulliMixture,
    CategoricalHMM,
    ConjugateGMM,
    FactorAnalysis,
    GammaPoisson,
    GaussianHMM,
    HierarchicalNormal,
    LatentDirichletAllocation,
    word_pairs,
)

Case = tuple[Any, tuple[Tensor, ...], dict[str, Tensor]]

CENTERS = torch.tensor([[-4.0, -4.0], [0.0, 5.0], [4.0, 0.0]]).double()
SHARES = torch.tensor([0.5, 0.3, 0.2]).double()
TRANSITION = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]).double()
EMISSION = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.0, 0.1, 0.9, 0.0], [0.0, 0.1, 0.0, 0.9]]).double()
LENGTHS = torch.tensor([12, 12, 5, 9, 1] * 16)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def labels(weights: Tensor, size: int) -> Tensor:
    return torch.multinomial(weights, size, replacement=True)


def mixture(**options: Any) -> Case:
    z = labels(SHARES, 600)
    deviations = torch.tensor([[0.5, 1.0], [1.0, 0.5], [0.7, 0.7]]).double()
    noise = deviations[z] * normal(600, 2)
    if options.get("precision") == "full":
        noise = noise @ torch.tensor([[1.0, 0.7], [0.0, 0.5]]).double()
    return ConjugateGMM(**options), (CENTERS[z] + noise,), {"mu": CENTERS}


def regression(relevance: bool) -> Case:
    w = torch.tensor([2.0, -1.0, 0.0, 0.0]).double()
    x = normal(400, 4)
    y = x @ w + 0.5 + 0.3 * normal(400)
    model = BayesianLinearRegression(relevance=relevance)
    one = torch.tensor(1.0).double()
    return model, (x, y), {"w": w, "b": 0.5 * one, "tau": 0.3**-2 * one}


def factors(noise: Any) -> Case:
    W = torch.tensor([[2.0, 0, 1, 0, -1], [0, 1.5, 0, -1, 1]]).double().T
    deviations = torch.tensor([0.3, 0.5, 0.4, 0.3, 0.6] if noise == "diagonal" else [0.4] * 5)
    x = normal(3000, 2) @ W.T + deviations.double() * normal(3000, 5) + 3
    tau = deviations.double() ** -2
    truth = {"product": W @ W.T, "tau": tau if noise == "diagonal" else tau[0]}
    return FactorAnalysis(2 if noise == "diagonal" else 3, noise=noise), (x,), truth


def topics() -> Case:
    phi = torch.tensor(
        [[4.0, 4, 4, 1, 0, 0, 0, 0], [0, 0, 0, 1, 4, 4, 2, 0], [0, 1, 0, 0, 0, 0, 4, 8]]
    )
    phi = (phi / phi.sum(-1, keepdim=True)).double()
    theta = torch.distributions.Dirichlet(torch.full((60, 3), 0.3).double()).sample()
    documents = torch.arange(60).repeat_interleave(80)
    words = labels(phi[labels(theta[documents], 1)[:, 0]], 1)[:, 0]
    counts = (
        torch.zeros(60, 8).double().index_put((documents, words), torch.ones(4800).double(), True)
    )
    return LatentDirichletAllocation(3, 60, 8), word_pairs(counts), {"phi": phi}


def states(sequences: int, steps: int) -> Tensor:
    z = [labels(torch.ones(3), sequences)]
    for _ in range(steps - 1):
        z.append(labels(TRANSITION[z[-1]], 1)[:, 0])
    return torch.stack(z, 1)


def gaussian_chains() -> Case:
    y = CENTERS[states(80, 12)] + 0.6 * normal(80, 12, 2)
    return GaussianHMM(3), (y, LENGTHS), {"mu": CENTERS, "transition": TRANSITION}


def symbol_chains() -> Case:
    y = labels(EMISSION[states(80, 12)].flatten(0, 1), 1).reshape(80, 12)
    return CategoricalHMM(3, 4), (y, LENGTHS), {"emission": EMISSION}


def hierarchy() -> Case:
    theta = 2 * normal(20) + 5
    groups = torch.arange(20).repeat(30)
    y = theta[groups] + 0.5 * normal(600)
    return (
        HierarchicalNormal(20),
        (groups, y),
        {"theta": theta, "within": torch.tensor(4.0).double()},
    )


def counts() -> Case:
    rate = torch.distributions.Gamma(1.0, 0.2).sample((10,)).double() + 1
    groups, exposure = torch.arange(10).repeat(50), 0.5 + torch.rand(500).double()
    arguments = groups, torch.poisson(exposure * rate[groups]), exposure
    return GammaPoisson(10), arguments, {"rate": rate}


def bits() -> Case:
    p = torch.tensor([[0.9, 0.9, 0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9, 0.9, 0.9]]).double()
    x = torch.bernoulli(p[labels(torch.tensor([0.6, 0.4]), 400)])
    return BernoulliMixture(2), (x,), {"p": p}


MAKERS: dict[str, Callable[[], Case]] = {
    "diagonal mixture": lambda: mixture(num_components=3),
    "full mixture": lambda: mixture(num_components=3, precision="full"),
    "diagonal process": lambda: mixture(num_components=4, pi="dirichlet_process"),
    "full process": lambda: mixture(num_components=4, pi="dirichlet_process", precision="full"),
    "regression with relevance": lambda: regression(True),
    "regression": lambda: regression(False),
    "factor analysis": lambda: factors("diagonal"),
    "principal components": lambda: factors("isotropic"),
    "topics": topics,
    "Gaussian chains": gaussian_chains,
    "symbol chains": symbol_chains,
    "hierarchy": hierarchy,
    "counts": counts,
    "bits": bits,
}
CHAINS = ("Gaussian chains", "symbol chains")
TOLERANCES = {
    "mu": 0.25,
    "w": 0.06,
    "b": 0.06,
    "phi": 0.06,
    "emission": 0.12,
    "transition": 0.2,
    "theta": 0.4,
    "p": 0.12,
    "product": 0.5,
}
"""Largest error of a posterior mean, about four posterior standard deviations."""
RELATIVE = {"tau": 0.35, "within": 0.25, "rate": 0.35}


def case(name: str, seed: int = 0) -> Case:
    """A model, its arguments, and what they were drawn from; random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MAKERS[name]()
