"""Conjugate programs as a person writes them, with data: ``PROGRAMS[name]`` is (model, arguments)."""

# ruff: noqa: N803, N806 (the names of the equations)

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.models import BernoulliMixture, CategoricalHMM, GammaPoisson, HierarchicalNormal

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=GENERATOR)


POINTS = torch.cat([normal(60, 2) - 3, normal(40, 2) + 3, normal(50, 2) / 2])
DESIGN = normal(50, 4)
RESPONSE = DESIGN @ torch.tensor([1.0, -1.0, 0.5, 0.0]).double() + 0.3 + normal(50) / 2
TABLE = normal(80, 2) @ normal(2, 5) + normal(80, 5) / 10
DOCUMENT, WORD = integers(10, 400), integers(30, 400)
GROUP = integers(8, 100)
MEASURED = (normal(8) * 2)[GROUP] + normal(100) / 2 + 1
COUNTS = torch.poisson((normal(8).exp() * 2)[GROUP], generator=GENERATOR)
BITS = (normal(100, 6) < torch.where(torch.arange(100)[:, None] < 50, 0.8, -0.8)).double()
STATES = (integers(3, 40, 1) == 0).long().cumsum(0)[:, 0] % 3
SERIES = (torch.tensor([-3.0, 0.0, 3.0]).double()[STATES] + 0.5 * normal(40))[:14]
SYMBOLS = integers(4, 30)[:12]  # chains are loops in Python
EFFECTS = torch.where(integers(2, 40, 1) == 0, -4.0, 4.0) + normal(40, 1) + normal(40, 3) / 2
ONE = torch.tensor(1.0).double()


def textbook_mixture(x: Tensor, K: int = 3) -> None:
    with pyro.plate("components", K):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2).to(x), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.full((K,), 1 / K).to(x)))
        pyro.sample("x", dist.Normal(mu[z], 1.0).to_event(1), obs=x)


def diagonal_mixture(x: Tensor, K: int = 3) -> None:
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(K).to(x)))
    with pyro.plate("components", K):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2).to(x), 10.0).to_event(1))
        tau = pyro.sample("tau", dist.Gamma(2 * torch.ones(2).to(x), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.Normal(mu[z], 1 / tau[z].sqrt()).to_event(1), obs=x)


def wishart_mixture(x: Tensor, K: int = 3) -> None:
    identity = torch.eye(2).to(x)
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(K).to(x)))
    with pyro.plate("components", K):
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2).to(x), 100 * identity))
        precision = pyro.sample("precision", dist.Wishart(4 * ONE, identity))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.MultivariateNormal(mu[z], precision_matrix=precision[z]), obs=x)


def relevance_regression(design: Tensor, y: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(ONE, 1.0))
    with pyro.plate("features", design.shape[1]):
        alpha = pyro.sample("alpha", dist.Gamma(ONE, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, alpha.rsqrt()))
    b = pyro.sample("b", dist.Normal(0 * ONE, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ w + b, tau.rsqrt()), obs=y)


def sum_regression(design: Tensor, y: Tensor) -> None:
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(2 * ONE, 1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(4).to(y), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((design * w).sum(-1), sigma2.sqrt()), obs=y)


def factor_analysis(x: Tensor, K: int = 2) -> None:
    with pyro.plate("features", x.shape[1]):
        tau = pyro.sample("tau", dist.Gamma(ONE, 1.0))
        W = pyro.sample("W", dist.Normal(torch.zeros(K).to(x), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(K).to(x), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.T, tau.rsqrt()).to_event(1), obs=x)


def topics(document: Tensor, word: Tensor, K: int = 3) -> None:
    with pyro.plate("topics", K):
        phi = pyro.sample("phi", dist.Dirichlet(torch.full((30,), 0.5).double()))
    with pyro.plate("documents", 10):
        theta = pyro.sample("theta", dist.Dirichlet(torch.full((K,), 0.5).double()))
    with pyro.plate("tokens", len(word)):
        z = pyro.sample("z", dist.Categorical(theta[document]))
        pyro.sample("w", dist.Categorical(phi[z]), obs=word)


def gaussian_chain(y: Tensor, K: int = 3) -> None:
    with pyro.plate("states", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K).to(y)))
        mu = pyro.sample("mu", dist.Normal(0 * ONE, 5.0))
        tau = pyro.sample("tau", dist.Gamma(2 * ONE, 1.0))
    z: Any = torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"y_{t}", dist.Normal(mu[z], tau[z].rsqrt()), obs=y[t])


def dirichlet_process(x: Tensor, T: int = 6) -> None:
    with pyro.plate("sticks", T - 1):
        v = pyro.sample("v", dist.Beta(ONE, 1.0))
    rest = (1 - v).cumprod(-1)
    pad = torch.nn.functional.pad
    weights = pad(v, (0, 1), value=1.0) * pad(rest, (1, 0), value=1.0)
    with pyro.plate("components", T):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2).to(x), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mu[z], 1.0).to_event(1), obs=x)


def grouped_effects(y: Tensor, K: int = 2) -> None:
    with pyro.plate("components", K):
        mu = pyro.sample("mu", dist.Normal(0 * ONE, 5.0))
    with pyro.plate("subjects", y.shape[0]):
        z = pyro.sample("z", dist.Categorical(torch.full((K,), 1 / K).to(y)))
        effect = pyro.sample("effect", dist.Normal(mu[z], 1.0))
        pyro.sample("y", dist.Normal(effect[:, None], 0.5 * ONE.expand(3)).to_event(1), obs=y)


PROGRAMS: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "textbook mixture": (textbook_mixture, (POINTS,)),
    "diagonal mixture": (diagonal_mixture, (POINTS,)),
    "Wishart mixture": (wishart_mixture, (POINTS,)),
    "regression with ARD": (relevance_regression, (DESIGN, RESPONSE)),
    "regression by a sum": (sum_regression, (DESIGN, RESPONSE)),
    "factor analysis": (factor_analysis, (TABLE,)),
    "topics": (topics, (DOCUMENT, WORD)),
    "Gaussian chain": (gaussian_chain, (SERIES,)),
    "categorical chain": (CategoricalHMM(2, 4), (SYMBOLS,)),
    "hierarchy": (HierarchicalNormal(8), (GROUP, MEASURED)),
    "Gamma-Poisson": (GammaPoisson(8), (GROUP, COUNTS)),
    "Bernoulli mixture": (BernoulliMixture(2), (BITS,)),
    "Dirichlet process": (dirichlet_process, (POINTS,)),
    "grouped effects": (grouped_effects, (EFFECTS,)),
}
CHAINS = ("Gaussian chain", "categorical chain")
