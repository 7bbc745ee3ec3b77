"""Sweeps that look at a part of the rows at a time are sweeps over all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ppl_vi import StopReason, fit
from ppl_vi.distributions import Wishart
from ppl_vi.errors import GuideError
from ppl_vi.guides import CAVIGuide
from ppl_vi.models import (
    BayesianLinearRegression,
    BernoulliMixture,
    FactorAnalysis,
    GammaPoisson,
)
from ppl_vi.sweeping import parting
from ppl_vi.sweeping.sweeper import bound_by_batches

NORMAL = torch.randn(307, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
CLUSTER = torch.randint(3, (307,), generator=torch.Generator().manual_seed(6))
CENTERS = 3 * torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
POINTS = NORMAL + CENTERS.double()[CLUSTER]
COUNTS = torch.arange(307).double() % 7
Y = POINTS @ torch.tensor([2.0, -1.0, 0.0]).double() + 0.3 * NORMAL[:, 0].flip(0)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 90 rows, the last one shorter."""
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
    "Gamma-Poisson": (started(GammaPoisson(5), {}), (torch.arange(307) % 5, COUNTS), False),
    "Bernoulli mixture": (
        started(BernoulliMixture(3), {"p": 0.3 + torch.arange(9.0).double().reshape(3, 3) / 30}),
        ((POINTS > 0).double(),),
        False,
    ),
    "relevance": (started(BayesianLinearRegression(), {}), (POINTS, Y), False),
    "groups": (started(two_blocks, {}), (POINTS[:, 0], torch.arange(307) % 5), False),
    "joint": (started(joint, MEANS), (POINTS,), True),
}
WAYS = [(name, compile) for name in CASES for compile in ("auto", False)]
QUICK = [("diagonal mixture", False), ("Bernoulli mixture", "auto"), ("relevance", "auto")]


@pytest.mark.parametrize(
    ("name", "compile"),
    [pytest.param(*way, marks=[] if way in QUICK else pytest.mark.slow) for way in WAYS],
)
def test_sweep_by_sweep_the_same(name: str, compile: Any, request: pytest.FixtureRequest) -> None:
    model, data, structured = CASES[name]
    options: Any = {"steps": 5, "tol": None, "seed": 0, "progress": False, "compile": compile}
    whole = fit(model, CAVIGuide(model, structured=structured), data, **options)
    request.getfixturevalue("parted")
    found = fit(model, CAVIGuide(model, structured=structured), data, **options)
    assert list(found.job.source.sizes().items()) == [(90, 3), (37, 1)]
    assert found.execution.mode == ("eager" if compile is False else "captured")
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-10, atol=0)
    assert float(found.bound) == pytest.approx(float(whole.bound), rel=1e-10)
    assert set(found.guide.factors()) == set(whole.guide.factors()) - {"z"}
    for one, other in zip(found.guide.tensors(), whole.guide.tensors(), strict=False):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    for site, counts in whole.guide.occupancies().items():
        torch.testing.assert_close(found.guide.occupancies()[site], counts, rtol=1e-8, atol=1e-8)


class Stored:
    """An array on disk, which knows how many rows were read of it at once."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def __getitem__(self, rows: Any) -> Any:
        found = self.array[rows]
        self.most = max(self.most, len(found))
        return found.copy()


class Items(Dataset[Tensor]):
    def __len__(self) -> int:
        return len(POINTS)

    def __getitem__(self, row: int) -> Tensor:
        return POINTS[row]


class Rows(IterableDataset[Tensor]):
    def __len__(self) -> int:
        return len(POINTS)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(POINTS)


def spread_out(x: Tensor) -> None:
    """One component alone, which is quickly fitted."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, tau.rsqrt()).to_event(1), obs=x)


@pytest.mark.parametrize("make", [Items, Rows, lambda: Stored(POINTS.numpy())])
def test_rows_that_are_read_part_by_part(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No minibatches, where nobody asked for them; and never all rows at once."""
    monkeypatch.setattr(parting, "_MOST_AT_ONCE", 100)
    monkeypatch.setattr(parting, "_IN_A_PART", 1_000)
    monkeypatch.setattr("ppl_vi.starting.ROWS_TO_START", 50)
    monkeypatch.setattr("ppl_vi.beginning.ROWS_TO_START", 50)
    data = make()
    found = fit(spread_out, "cavi", data, seed=0, progress=False, compile=False)
    assert found.job.source.in_parts and len(found.job.source.sizes()) == 2
    assert found.stop_reason is StopReason.CONVERGED
    assert getattr(data, "most", 0) < len(POINTS)
    whole = CAVIGuide(spread_out)
    whole.begin((POINTS,), {}, {})
    for _ in range(20):
        best = whole.sweep()
    assert float(found.bound) == pytest.approx(best, rel=1e-8)
    assert found.elbo == pytest.approx(best, abs=5 * found.elbo.standard_error)


@pytest.mark.parametrize("data", [POINTS, Items(), Rows(), Stored(POINTS.numpy())])
def test_small_data_stay_in_one_piece(data: Any) -> None:
    found = fit(spread_out, "cavi", data, seed=0, progress=False)
    assert dict(found.job.source.sizes()) == {len(POINTS): 1}
    whole = fit(spread_out, "cavi", POINTS, seed=0, progress=False, compile=False)
    assert float(found.bound) == pytest.approx(float(whole.bound), rel=1e-10)


def test_rows_that_hang_together_stay_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "_MOST_AT_ONCE", 0)

    def chain(x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(level, 1.0).expand([len(x)]).to_event(1), obs=x)

    found = fit(chain, "cavi", POINTS[:, 0], seed=0, progress=False)
    assert not found.job.source.in_parts


def test_what_batches_do_not_learn_is_refused_for_parts() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale).expand([3]).to_event(1), obs=x)

    with pytest.raises(GuideError, match=r"parameter 'scale'"):
        fit(model, "cavi", Items(), progress=False)


@pytest.mark.slow
def test_latents_of_rows_are_solved_for_in_each_part(parted: None) -> None:
    """So that the bound of each sweep is that with their factors at the optimum, and never falls."""
    torch.manual_seed(0)
    loadings = torch.tensor([[2.0, 0, 1, -1], [0, 1.5, -1, 1]])
    x = torch.randn(300, 2) @ loadings + 0.4 * torch.randn(300, 4)
    model = started(FactorAnalysis(2, spread=2.0), {"W": 0.3 * torch.randn(4, 2)})
    options: Any = {"steps": 6, "tol": None, "compile": False, "progress": False}
    found = fit(model, "cavi", x, seed=0, **options)
    assert found.job.source.in_parts and "z" not in found.guide.factors()
    assert (found.losses.diff() < 0).all()
    with found.fitted.applied():
        again = bound_by_batches(found.guide, found.job)
    assert float(found.bound) == pytest.approx(again, rel=1e-10)


def test_parameters_are_learned_from_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "_MOST_AT_ONCE", 100)

    def learned(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    result = fit(learned, "cavi", POINTS[:, 0], progress=False)
    assert result.params["scale"].item() == pytest.approx(POINTS[:, 0].std().item(), rel=0.01)
