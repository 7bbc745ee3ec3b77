"""Sweeps that look at a part of the rows at a time are sweeps over all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import fit, parting
from ppl_vi.distributions import Wishart
from ppl_vi.guides import CAVIGuide
from ppl_vi.models import (
    BayesianLinearRegression,
    BernoulliMixture,
    GammaPoisson,
)

NORMAL = torch.randn(607, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
CLUSTER = torch.randint(3, (607,), generator=torch.Generator().manual_seed(6))
CENTERS = 3 * torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
POINTS = NORMAL + CENTERS.double()[CLUSTER]
COUNTS = torch.arange(607).double() % 7
Y = POINTS @ torch.tensor([2.0, -1.0, 0.0]).double() + 0.3 * NORMAL[:, 0].flip(0)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of about a hundred rows, the last one shorter."""
    monkeypatch.setattr(parting, "_MOST_AT_ONCE", 0)
    monkeypatch.setattr(parting, "in_parts", parting.in_parts)
    monkeypatch.setattr("ppl_vi.beginning.in_parts", lambda model, source, plate: source.parted(90))


def started(model: Any, values: Mapping[str, Tensor]) -> Any:
    """The model, whose factors start at the values."""

    def program(*args: Tensor) -> Any:
        return model(*args)

    program.initial_values = lambda *args: values  # type: ignore[attr-defined]
    return program


def two_blocks(x: Tensor, groups: Tensor) -> None:
    """Groups of unknown mean and noise, a center of all, and no discrete latent."""
    center = pyro.sample("center", dist.Normal(0.0, 10.0))
    between = pyro.sample("between", dist.Gamma(1.0, 1.0))
    with pyro.plate("groups", 5):
        mean = pyro.sample("mean", dist.Normal(center, between.rsqrt()))
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean[groups], tau[groups].rsqrt()), obs=x)


def joint(x: Tensor) -> None:
    """Means whose precision is a multiple of their component's."""
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        tau = pyro.sample("tau", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), (0.01 * tau).rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=x)


def mixture(x: Tensor, full: bool = False) -> None:
    """With priors that do not look at the data: of a part they would be others."""
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        if full:
            precision = pyro.sample("precision", Wishart(torch.tensor(4.0), torch.eye(3)))
        else:
            tau = pyro.sample("tau", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        if full:
            x_given_z = dist.MultivariateNormal(mu[z], precision_matrix=precision[z])
        else:
            x_given_z = dist.Normal(mu[z], tau[z].rsqrt()).to_event(1)
        pyro.sample("x", x_given_z, obs=x)


def full_mixture(x: Tensor) -> None:
    """The same with a precision matrix for each component."""
    mixture(x, full=True)


MEANS = {"mu": 2 * CENTERS.double()}
CASES: dict[str, tuple[Any, tuple[Tensor, ...], bool]] = {
    "diagonal mixture": (started(mixture, MEANS), (POINTS,), False),
    "full mixture": (started(full_mixture, MEANS), (POINTS,), False),
    "Gamma-Poisson": (started(GammaPoisson(5), {}), (torch.arange(607) % 5, COUNTS), False),
    "Bernoulli mixture": (
        started(BernoulliMixture(3), {"p": 0.3 + 0.1 * torch.arange(9.0).reshape(3, 3) / 3}),
        ((POINTS > 0).double(),),
        False,
    ),
    "relevance": (started(BayesianLinearRegression(), {}), (POINTS, Y), False),
    "groups": (started(two_blocks, {}), (POINTS[:, 0], torch.arange(607) % 5), False),
    "joint": (started(joint, MEANS), (POINTS,), True),
}
SLOW = ("joint", "groups", "Gamma-Poisson")


def slow_or_not(names: Any) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


@pytest.mark.parametrize("compile", ["auto", False])
@pytest.mark.parametrize("name", slow_or_not(CASES))
def test_sweep_by_sweep_the_same(name: str, compile: Any, request: pytest.FixtureRequest) -> None:
    model, data, structured = CASES[name]
    options: Any = {"steps": 8, "tol": None, "seed": 0, "progress": False, "compile": compile}
    whole = fit(model, CAVIGuide(model, structured=structured), data, **options)
    request.getfixturevalue("parted")
    found = fit(model, CAVIGuide(model, structured=structured), data, **options)
    assert list(found.job.source.sizes().items()) == [(90, 6), (67, 1)]
    assert found.execution.mode == ("eager" if compile is False else "captured")
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-10, atol=0)
    assert float(found.bound) == pytest.approx(float(whole.bound), rel=1e-10)
    assert set(found.guide.factors()) == set(whole.guide.factors()) - {"z"}
    for one, other in zip(found.guide.tensors(), whole.guide.tensors(), strict=False):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    for site, counts in whole.guide.occupancies().items():
        torch.testing.assert_close(found.guide.occupancies()[site], counts, rtol=1e-8, atol=1e-8)
