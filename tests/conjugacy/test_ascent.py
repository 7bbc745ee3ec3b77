"""Coordinate ascent on programs: the bound never falls, is complete, and updates are the textbook's."""

# ruff: noqa: N806 (the names of the equations)

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ppl_vi import RenyiELBO, fit
from ppl_vi.errors import CompileError, ModelError
from ppl_vi.guides import CAVIGuide
from ppl_vi.stopping.reasons import StopReason

_SPEC: Any = importlib.util.spec_from_file_location(
    "conjugate_programs", Path(__file__).with_name("programs.py")
)
programs = sys.modules["conjugate_programs"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(programs)
PROGRAMS, CHAINS = programs.PROGRAMS, programs.CHAINS


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def begun(name: str, seed: int = 0) -> CAVIGuide:
    model, arguments = PROGRAMS[name]
    torch.manual_seed(seed)
    guide = CAVIGuide(model)
    guide.begin(arguments, {}, {})
    return guide


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_bound_never_falls(name: str) -> None:
    for seed in range(1 if name in CHAINS else 2):
        guide = begun(name, seed)
        bounds = torch.tensor([guide.sweep() for _ in range(8 if name in CHAINS else 25)])
        assert torch.isfinite(bounds).all()
        assert (bounds.diff() > -1e-9 * bounds.abs().max()).all()
        assert bounds[-1] > bounds[0]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "Gaussian chain" else ()) for n in PROGRAMS],
)
def test_the_bound_is_complete(name: str) -> None:
    """Within 4 standard errors of a Monte Carlo estimate; one false alarm in 16,000 for each."""
    model, arguments = PROGRAMS[name]
    result = fit(model, "cavi", arguments, steps=6, seed=1, progress=False)
    assert result.elbo.standard_error > 0
    assert abs(result.elbo - result.bound) < 4 * result.elbo.standard_error


def exact_normal() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = torch.tensor([1.0, 2.0, 4.0])

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(mean, 0.5), obs=x)

    precision = 1 / 4 + 3 * 4
    return model, (x,), "mean", dist.Normal((1 / 4 + 4 * 7) / precision, precision**-0.5)


def exact_regression() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    design, y = programs.DESIGN, programs.RESPONSE

    def model(design: Tensor, y: Tensor) -> None:
        with pyro.plate("features", 4):
            w = pyro.sample("w", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(design @ w, 0.5), obs=y)

    precision = torch.eye(4) / 4 + 4 * design.T @ design
    mean = torch.linalg.solve(precision, 4 * design.T @ y)
    return model, (design, y), "w", dist.MultivariateNormal(mean, precision_matrix=precision)


def exact_precision() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = torch.tensor([1.0, -2.0, 0.5])

    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 3.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(1.0, (2.0 * tau) ** -0.5), obs=x)

    return model, (x,), "tau", dist.Gamma(torch.tensor(3.5), 3.0 + (x - 1).square().sum())


def exact_variance() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = torch.tensor([1.0, -2.0, 0.5])

    def model(x: Tensor) -> None:
        variance = pyro.sample("variance", dist.InverseGamma(2.0, 3.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(0.0, variance.sqrt()), obs=x)

    return model, (x,), "variance", dist.InverseGamma(torch.tensor(3.5), 3.0 + x.square().sum() / 2)


def exact_matrix() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = programs.POINTS[:10]

    def model(x: Tensor) -> None:
        V = pyro.sample("V", dist.Wishart(torch.tensor(5.0), torch.eye(2) / 2))
        with pyro.plate("data", 10):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), precision_matrix=V), obs=x)

    inverse_scale = 2 * torch.eye(2) + x.T @ x
    return model, (x,), "V", dist.Wishart(torch.tensor(15.0), precision_matrix=inverse_scale)


def exact_rate() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = torch.tensor([3.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Poisson(rate * 2.0), obs=x)
            pyro.sample("wait", dist.Exponential(rate), obs=x + 1)

    return model, (x,), "rate", dist.Gamma(torch.tensor(10.0), 1.0 + 6.0 + 8.0)


def exact_share() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = torch.tensor([3.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Binomial(4, p), obs=x)
            pyro.sample("y", dist.Bernoulli(1 - p), obs=(x > 0).double())

    return model, (x,), "p", dist.Beta(torch.tensor(2.0 + 5 + 1), torch.tensor(1.0 + 7 + 2))


def exact_shares() -> tuple[Any, tuple[Tensor, ...], str, Any]:
    x = torch.tensor([[3.0, 0.0, 2.0], [1.0, 1.0, 1.0]])

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0])))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Multinomial(probs=p, total_count=5, validate_args=False), obs=x)

    return model, (x,), "p", dist.Dirichlet(torch.tensor([4.5, 2.0, 5.0]))


@pytest.mark.parametrize(
    "case",
    [
        exact_normal,
        exact_regression,
        exact_precision,
        exact_variance,
        exact_matrix,
        exact_rate,
        exact_share,
        exact_shares,
    ],
)
def test_one_block_is_exact_after_one_sweep(case: Any) -> None:
    model, arguments, site, posterior = case()
    guide = CAVIGuide(model)
    guide.begin(arguments, {}, {})
    guide.sweep()
    found = guide.factors()[site]
    assert type(found).__name__ == type(posterior).__name__
    draws = found.sample((20,))
    torch.testing.assert_close(
        found.log_prob(draws), posterior.log_prob(draws), rtol=1e-10, atol=1e-10
    )


def test_the_textbook_mixture_sweep_by_sweep() -> None:
    """Bishop's equations for unknown means; Blei, Kucukelbir and McAuliffe (2017), equations 26, 34."""
    x, K = programs.POINTS, 3
    guide = CAVIGuide(programs.textbook_mixture)
    guide.begin((x,), {}, {"mu": x[[0, 70, 120]]})
    factor = guide.factors()["mu"].base_dist
    m, s2 = factor.loc.clone(), factor.scale.clone().square()
    for _ in range(12):
        logits = x @ m.T - 0.5 * (m.square() + s2).sum(-1)
        r = logits.softmax(-1)
        s2 = (1 / (0.01 + r.sum(0)))[:, None].expand(K, 2)
        m = s2 * (r.T @ x)
        guide.sweep()
        factor = guide.factors()["mu"].base_dist
        torch.testing.assert_close(factor.loc, m, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(factor.scale.square(), s2, rtol=1e-8, atol=1e-8)


def test_topics_sweep_by_sweep() -> None:
    """Blei, Ng and Jordan (2003), with smoothed topics: one pass over words, then both Dirichlets."""
    document, word = programs.DOCUMENT, programs.WORD
    torch.manual_seed(3)
    guide = CAVIGuide(programs.topics)
    guide.begin((document, word), {}, {})
    theta, phi = (guide.factors()[name].concentration.clone() for name in ("theta", "phi"))

    def log_mean(a: Tensor) -> Tensor:
        return a.digamma() - a.sum(-1, keepdim=True).digamma()

    for _ in range(12):
        r = (log_mean(theta)[document] + log_mean(phi)[:, word].T).softmax(-1)
        theta = torch.full((10, 3), 0.5).index_add(0, document, r)
        phi = torch.full((3, 30), 0.5).index_add(1, word, r.T)
        guide.sweep()
        factors = guide.factors()
        torch.testing.assert_close(factors["theta"].concentration, theta, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(factors["phi"].concentration, phi, rtol=1e-8, atol=1e-8)


def likeliest_mixture(x: Tensor) -> None:
    pi = pyro.param("pi", torch.full((3,), 1 / 3), constraint=constraints.simplex)
    mu = pyro.param("mu", x[[0, 70, 120]])
    sigma = pyro.param("sigma", torch.ones(3, 2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pi))
        pyro.sample("x", dist.Normal(mu[z], sigma[z]).to_event(1), obs=x)


def test_expectation_maximization_is_that_of_scikit_learn() -> None:
    x = programs.POINTS
    result = fit(likeliest_mixture, "cavi", x, steps=8, progress=False)
    for steps, loss in enumerate(result.losses, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not converged
            theirs = GaussianMixture(
                3,
                covariance_type="diag",
                reg_covar=0,
                max_iter=steps,
                tol=0,
                weights_init=np.full(3, 1 / 3),
                means_init=x[[0, 70, 120]].numpy(),
                precisions_init=np.ones((3, 2)),
            ).fit(x.numpy())
        assert -loss.item() == pytest.approx(theirs.score(x.numpy()) * len(x), rel=1e-8)


def test_a_learned_variance_beside_a_factor() -> None:
    """Variational EM comes to the maximum of the marginal likelihood, where q is exact."""
    y = 3 * programs.DESIGN[:, 0]

    def model(y: Tensor) -> None:
        spread = pyro.param("spread", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, spread))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    result = fit(model, "cavi", y, steps=500, progress=False)
    assert (result.losses.diff() < 1e-9).all()
    exact = (y.square().mean() - 1).sqrt()  # of the marginal Normal(0, spread^2 + 1)
    torch.testing.assert_close(result.params["spread"], exact, rtol=1e-3, atol=0.0)
    evidence = dist.Normal(0.0, (exact**2 + 1).sqrt()).log_prob(y).sum()
    assert result.bound == pytest.approx(evidence.item(), rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "Dirichlet process",
        "factor analysis",
        pytest.param("categorical chain", marks=pytest.mark.slow),
    ],
)
def test_captured_sweeps_are_the_same(name: str) -> None:
    model, arguments = PROGRAMS[name]
    captured, eager = (
        fit(model, "cavi", arguments, steps=9, seed=2, compile=compile, progress=False)
        for compile in ("auto", False)
    )
    assert captured.execution.mode == "captured" and eager.execution.mode == "eager"
    torch.testing.assert_close(captured.losses, eager.losses, rtol=1e-12, atol=1e-10)


def test_compiled_sweeps_are_the_same() -> None:
    """And compiled once: a second fit finds the library."""
    model, arguments = PROGRAMS["diagonal mixture"]
    fits = [
        fit(model, "cavi", arguments, steps=9, seed=2, compile=compile, progress=False)
        for compile in (True, False, True)
    ]
    assert [f.execution.mode for f in fits] == ["compiled", "eager", "compiled"]
    assert fits[2].execution.compilations == 0 and fits[2].execution.loads == 1
    torch.testing.assert_close(fits[0].losses, fits[1].losses, rtol=1e-10, atol=1e-8)
    assert torch.equal(fits[0].losses, fits[2].losses)


def test_what_cannot_be_compiled_is_told() -> None:
    with pytest.raises(CompileError, match="parameters of the model"):
        fit(likeliest_mixture, "cavi", programs.POINTS, compile=True, progress=False)


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_summed_out_of_gradient_fits(name: str) -> None:
    model, arguments = PROGRAMS[name]
    gradients = fit(model, "normal", arguments, steps=4, seed=0, progress=False)
    assert torch.isfinite(gradients.losses).all()


def test_a_fit_is_an_ordinary_result() -> None:
    x = programs.POINTS
    result = fit(programs.diagonal_mixture, "cavi", x, seed=0, restarts=4, progress=False)
    assert result.stop_reason is StopReason.CONVERGED
    assert result.losses.diff().max() < 1e-7
    means = result.sample(200)["mu"].mean(0)
    for center in ([-3.0, -3.0], [3.0, 3.0], [0.0, 0.0]):
        assert (means - torch.tensor(center)).norm(dim=-1).min() < 0.6
    assert set(result.guide.factors()) == {"pi", "mu", "tau", "z"}
    assert result.predict(num_samples=10)["x"].shape == (10, *x.shape)
    again = fit(programs.diagonal_mixture, "cavi", x, seed=0, restarts=4, progress=False)
    assert torch.equal(again.losses, result.losses)


def softened(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m.exp(), 1.0), obs=y)


def heavy(y: Tensor) -> None:
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, s), obs=y)


def squared(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m * m, 1.0), obs=y)


def by_scale(y: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, tau), obs=y)


def conditional(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m if m > 0 else -m, 1.0), obs=y)


def normalized(y: Tensor) -> None:
    with pyro.plate("kinds", 3):
        g = pyro.sample("g", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(g / g.sum(-1)), obs=torch.zeros(len(y)).long())


def looping(y: Tensor) -> None:
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    z: Any = 0
    for t in range(70):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"y_{t}", dist.Normal(z.double(), 1.0), obs=y[0])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (softened, "site 'y'.*loc.*'exp'"),
        (heavy, "site 's'.*HalfCauchy.*normal"),
        (squared, "site 'y'.*product of a latent with itself"),
        (by_scale, "site 'y'.*precision"),
        (conditional, "value of a latent"),
        (normalized, "site 'y'.*probs.*'sum'"),
        (looping, "70 discrete sites.*pyro.markov"),
    ],
)
def test_what_is_not_conjugate_is_refused(model: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fit(model, "cavi", torch.ones(5), progress=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": RenyiELBO(alpha=0.5, num_particles=2)}, "objective"),
        ({"optimizer": torch.optim.Adam}, "optimizer"),
    ],
)
def test_settings_of_gradient_steps_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(Exception, match=words):
        fit(programs.textbook_mixture, "cavi", programs.POINTS, progress=False, **settings)
