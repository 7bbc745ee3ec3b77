"""Natural-gradient ascent on minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import fit
from ppl_vi.errors import GuideError
from ppl_vi.guides import CAVIGuide
from ppl_vi.models import ConjugateGMM


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


GENERATOR = torch.Generator().manual_seed(5)
NORMAL = torch.randn(6_000, 3, generator=GENERATOR, dtype=torch.float64)
CLUSTER = torch.randint(4, (6_000,), generator=GENERATOR)
CENTERS = torch.tensor([[4.0, 4.0, 4.0], [-4.0, -4.0, 4.0], [-4.0, 4.0, -4.0], [4.0, -4.0, -4.0]])
POINTS = NORMAL + CENTERS.double()[CLUSTER]
TABLE = NORMAL[:, :1] @ torch.tensor([[2.0, -1.0, 0.5]]).double() + 0.3 * NORMAL


def mixture(x: Tensor) -> None:
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("components", 4):
        tau = pyro.sample("tau", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=x)


def joint_mixture(x: Tensor) -> None:
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("components", 4):
        tau = pyro.sample("tau", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), (0.01 * tau).rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=x)


def factors(x: Tensor) -> None:
    """A latent of its own for each row, in a plate of all rows."""
    with pyro.plate("columns", 3):
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(u[..., None] * w, tau.rsqrt()).to_event(1), obs=x)


def subsampled(x: Tensor) -> None:
    with pyro.plate("columns", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 6_000, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "structured"),
    [
        (mixture, False),
        pytest.param(joint_mixture, True, marks=pytest.mark.slow),
        pytest.param(factors, False, marks=pytest.mark.slow),
        (subsampled, False),
    ],
)
def test_three_passes_come_near_the_optimum(model: Any, structured: bool) -> None:
    x = TABLE if model is factors else POINTS
    whole = fit(model, CAVIGuide(model, structured=structured), x, seed=0, progress=False)
    guide = CAVIGuide(model, structured=structured)
    result = fit(model, guide, x, seed=0, batch_size=60, steps=300, progress=False)
    assert result.num_steps == len(result.losses) == 300
    gap = (whole.bound - result.bound) / len(x)
    assert -1e-6 < gap < 0.01
    # The guide draws what the bound is of: one false alarm in 16,000 for each.
    assert abs(result.elbo - result.bound) < 4 * result.elbo.standard_error


def test_one_batch_of_all_rows_is_a_sweep() -> None:
    """With step size 1: a natural gradient leads to the optimum."""
    torch.manual_seed(0)
    start = {"mu": POINTS[[0, 1, 2, 3]]}
    swept, stepped = CAVIGuide(mixture), CAVIGuide(mixture)
    swept.begin((POINTS,), {}, start)
    torch.manual_seed(0)
    stepped.begin((POINTS,), {}, start, frozenset({"data"}))
    swept.sweep()
    _, *new = stepped.stepper((POINTS,), {})(torch.tensor(1.0))
    stepped.adopt(new)
    for mine, other in zip(stepped.tensors(), swept.tensors(), strict=False):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_halfway_between_joint_factors() -> None:
    """In the natural parameters of the Normal-Gamma: those of log q, linear in τμ², τμ, τ and log τ."""
    x = POINTS[:, 0]

    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 3.0))
        mu = pyro.sample("mu", dist.Normal(1.0, (0.5 * tau).rsqrt()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)

    guide = CAVIGuide(model, structured=True)
    guide.begin((x,), {}, {"mu": torch.tensor(9.0)}, frozenset({"data"}))
    first = guide.tensors()
    _, *best = guide.stepper((x,), {})(torch.tensor(1.0))
    _, *half = guide.stepper((x,), {})(torch.tensor(0.25))

    def natural(tensors: Any) -> Tensor:
        a, minus_b, weighted, precision = (tensor.flatten() for tensor in tensors)
        return torch.cat([a, minus_b - 0.5 * weighted**2 / precision, weighted, precision])

    expected = 0.75 * natural(first) + 0.25 * natural(best)
    torch.testing.assert_close(natural(half), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_rows_never_seen_have_factors() -> None:
    result = fit(factors, "cavi", TABLE, seed=0, batch_size=100, steps=60, progress=False)
    assert set(result.guide.factors()) == {"tau", "w"}
    with torch.no_grad():
        drawn = torch.stack([result.guide(TABLE[:50] + 0.0)["u"] for _ in range(200)])
    inferred = drawn.mean(0)
    truth = NORMAL[:50, 0]
    assert abs(torch.corrcoef(torch.stack([inferred, truth]))[0, 1]) > 0.95


def test_captured_steps_are_the_same() -> None:
    captured, eager = (
        fit(mixture, "cavi", POINTS, seed=0, batch_size=350, steps=20, compile=c, progress=False)
        for c in ("auto", False)
    )
    assert captured.execution.mode == "captured" and eager.execution.mode == "eager"
    torch.testing.assert_close(captured.losses, eager.losses, rtol=1e-12, atol=1e-10)


def test_a_shipped_model_and_its_step_sizes() -> None:
    model = ConjugateGMM(4)
    whole = fit(model, "cavi", POINTS, seed=0, progress=False)
    guide = CAVIGuide(model, delay=5.0, forgetting=0.7)
    result = fit(model, guide, POINTS, seed=0, batch_size=200, steps=90, progress=False)
    assert abs(whole.bound - result.bound) / len(POINTS) < 0.02


def six_components(x: Tensor) -> None:
    """Two of them start far from all rows. Beside them, a latent of all rows."""
    odd = pyro.sample("odd", dist.Bernoulli(0.5))
    pyro.sample("seen", dist.Normal(odd, 1.0), obs=torch.tensor(0.7))
    pi = pyro.sample("pi", dist.Dirichlet(0.01 * torch.ones(6)))
    with pyro.plate("components", 6):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.Normal(mu[z], 1.0).to_event(1), obs=x)


def test_elements_of_all_batches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are where all rows are one batch: in rows, whatever a batch's rows stand for."""
    far = torch.tensor([[90.0, 0.0, 0.0], [-90.0, 0.0, 0.0]])
    start = {"mu": torch.cat([CENTERS.double(), far])}
    monkeypatch.setattr(six_components, "initial_values", lambda x: start, raising=False)
    x = torch.cat([POINTS, POINTS[:50]])  # the last batch is shorter
    result = fit(six_components, "cavi", x, seed=0, batch_size=100, steps=61, progress=False)
    found = result.guide.occupancies()
    factors = result.guide.factors()
    mu, pi = factors["mu"], factors["pi"]
    mean, variance = mu.base_dist.loc, mu.base_dist.scale.square()
    logits = pi.concentration.digamma() + x @ mean.T - 0.5 * (mean.square() + variance).sum(-1)
    torch.testing.assert_close(found["z"], logits.softmax(-1).sum(0), rtol=1e-8, atol=1e-8)
    odds = torch.tensor([0.7, 0.3]).square().mul(-0.5).softmax(0)
    torch.testing.assert_close(found["odd"], odds, rtol=1e-10, atol=1e-10)
    assert len(result.remarks) == 1 and "'z': 2 of 6 components are empty" in result.remarks[0]
    assert result.remarks[0].endswith("4, 5")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"delay": -1.0}, "delay"), ({"forgetting": 0.5}, "forgetting"), ({"forgetting": 1.5}, "1.5")],
)
def test_step_sizes_that_do_not_converge_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CAVIGuide(mixture, **settings)


def test_parameters_are_not_learned_from_batches() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    with pytest.raises(GuideError, match=r"parameter 'scale'.*batch_size"):
        fit(model, "cavi", POINTS[:, 0], batch_size=100, progress=False)


def test_a_guide_begins_without_gradients_being_recorded() -> None:
    with torch.no_grad():
        guide = CAVIGuide(mixture)
        guide.begin((POINTS[:50],), {}, {})
        assert guide.sweep() <= guide.sweep()
