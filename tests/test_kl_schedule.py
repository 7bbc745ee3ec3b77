"""Weights on KL terms: the gradient they give, the losses they leave alone, and what is refused."""

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.distributions import constraints

from ppl_vi import (
    ELBO,
    ForwardKL,
    GuideError,
    ImportanceWeightedELBO,
    LeaveOneOut,
    ScoreFunction,
    fit,
)

X = torch.tensor([0.4, 1.2, 2.0, 3.1])


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """The ELBO that a result tells is of 50 draws, not of 1,000."""
    monkeypatch.setattr("ppl_vi.evaluation._MOST_DRAWS", 50)


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x):
    scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.3)), scale))
    with pyro.plate("data", len(x)):
        local = pyro.param("local", torch.linspace(-1.0, 1.0, len(x)))
        pyro.sample("z", dist.Normal(local, 0.8))


def moved(objective=None, **options):
    """By how much one step of size 1 moves each parameter, unconstrained: the gradient."""
    start = {"loc": 0.3, "scale": torch.tensor(0.7).log(), "local": torch.linspace(-1.0, 1.0, 4)}
    result = fit(
        model,
        guide,
        X,
        objective=objective or ELBO(3),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        steps=1,
        seed=0,
        progress=False,
        **options,
    )
    end = {**result.params, "scale": result.params["scale"].log()}
    return torch.cat([(end[n] - start[n]).reshape(-1) for n in start]), result


OBJECTIVES = [
    ELBO(3),
    ELBO(3, analytic=False),
    ELBO(3, estimators={"z": ScoreFunction(LeaveOneOut())}),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["closed", "sampled", "score"])
def test_the_gradient_is_linear_in_the_weights(objective):
    plain, _ = moved(objective)
    one, none, part = (moved(objective, kl_schedule=w)[0] for w in (1.0, 0.0, 0.3))
    torch.testing.assert_close(one, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part, 0.3 * one + 0.7 * none, rtol=1e-10, atol=1e-10)
    apart = [moved(objective, kl_schedule={name: 0.0})[0] for name in ("mean", "z")]
    torch.testing.assert_close(sum(apart), one + none, rtol=1e-10, atol=1e-10)


def test_the_weight_is_on_the_divergence_of_its_site():
    """KL(q(mean) || p(mean)) is known, so is its gradient in loc and log scale."""
    without, _ = moved(kl_schedule={"mean": 0.0})
    full, _ = moved(kl_schedule={"mean": 1.0})
    loc = torch.tensor(0.3, requires_grad=True)
    log_scale = torch.tensor(0.7).log().requires_grad_()
    kl = torch.distributions.kl_divergence(dist.Normal(loc, log_scale.exp()), dist.Normal(0.0, 2.0))
    exact = -torch.stack(torch.autograd.grad(kl, [loc, log_scale]))
    torch.testing.assert_close((full - without)[:2], exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(full[2:], without[2:])


@pytest.mark.parametrize("objective", [ELBO(3), ImportanceWeightedELBO(K=4, num_particles=2)])
def test_losses_and_bounds_are_of_weight_one(objective):
    _, plain = moved(objective)
    _, weighted = moved(objective, kl_schedule=lambda step: 0.1)
    torch.testing.assert_close(weighted.losses, plain.losses)
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "progress": False, "seed": 0}
    results = [
        fit(model, guide, X, objective=objective, steps=2, kl_schedule=weight, **still)
        for weight in (None, 0.1)
    ]
    assert results[0].elbo == results[1].elbo and results[0].bound == results[1].bound


def ramp(step):
    return min(1.0, step / 60)


@pytest.mark.parametrize(
    "name", [pytest.param("normal", marks=pytest.mark.slow), "multivariate_normal"]
)
@pytest.mark.parametrize("compile", ["auto", pytest.param(True, marks=pytest.mark.slow)])
def test_captured_and_compiled_steps_read_the_weight_of_each_step(name, compile):
    options = {"steps": 130, "seed": 0, "progress": False, "kl_schedule": ramp}
    eager = fit(model, name, X, compile=False, **options)
    other = fit(model, name, X, compile=compile, **options)
    assert other.execution.mode == ("compiled" if compile is True else "captured")
    assert other.execution.captures == 1
    torch.testing.assert_close(other.losses, eager.losses, rtol=1e-6, atol=1e-6)
    plain = fit(model, name, X, compile=compile, **{**options, "kl_schedule": None})
    assert not torch.allclose(plain.losses[50:], other.losses[50:], rtol=1e-3)


def test_minibatches_of_two_sizes_read_the_weight_of_each_step():
    def rows(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def encoder(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.5))

    data = torch.randn(25)
    options = {"batch_size": 10, "steps": 120, "seed": 0, "progress": False, "kl_schedule": ramp}
    eager, captured = (fit(rows, encoder, data, compile=c, **options) for c in (False, "auto"))
    assert captured.execution.mode == "captured"
    torch.testing.assert_close(captured.losses, eager.losses, rtol=1e-6, atol=1e-6)


def test_the_optimum_of_a_constant_weight():
    """E[log p(x | z)] - w KL is highest at precision (4 + w) / w and mean sum(x) / (4 + w)."""
    w = 0.25

    def one(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=x)

    result = fit(one, "normal", X, steps=600, seed=0, progress=False, kl_schedule={"z": w})
    loc, above = result.guide.quantiles(dist.Normal(0.0, 1.0).cdf(torch.tensor([0.0, 1.0])))["z"]
    scale = above - loc
    assert loc.item() == pytest.approx((X.sum() / (4 + w)).item(), abs=0.01)
    assert scale.item() == pytest.approx((w / (4 + w)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("schedule", "error", "said"),
    [
        ({"w": 1.0}, GuideError, "site 'w' .* no latent .* 'mean', 'z'"),
        ({"x": 1.0}, GuideError, "site 'x'"),
        (-0.1, ValueError, "weight -0.1 at step 0"),
        (lambda step: float("nan") if step == 3 else 1.0, ValueError, "weight nan at step 3"),
        ({"z": "half"}, ValueError, "weight 'half'"),
        (True, ValueError, "weight True"),
    ],
)
def test_bad_schedules(schedule, error, said):
    with pytest.raises(error, match=said):
        fit(model, guide, X, steps=5, progress=False, kl_schedule=schedule)


def test_objectives_that_have_no_place_for_weights():
    for objective in (
        pyro.infer.Trace_ELBO(),
        ForwardKL(K=4),
        ImportanceWeightedELBO(K=4, doubly_reparameterized=True),
    ):
        with pytest.raises(GuideError, match=r"kl_schedule weighs .* Use ppl_vi.ELBO\(\)"):
            fit(model, guide, X, objective=objective, steps=5, progress=False, kl_schedule=0.5)


def test_guides_that_draw_sites_together_or_by_exact_updates():
    with pytest.raises(GuideError, match="drawn together"):
        fit(model, "multivariate_normal", X, steps=5, progress=False, kl_schedule={"z": 0.5})
    with pytest.raises(GuideError, match="kl_schedule: exact updates"):
        fit(model, "cavi", X, steps=5, progress=False, kl_schedule=0.5)


def test_sites_that_are_summed_out():
    def mixture(x):
        center = pyro.sample("center", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            label = pyro.sample("label", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(center[..., 0] + label, 1.0))
            pyro.sample("x", dist.Normal(z + label, 1.0), obs=x)

    with pytest.raises(GuideError, match=r"'label' .* summed out"):
        fit(mixture, "normal", X, steps=5, progress=False, kl_schedule={"label": 0.5})
    with pytest.raises(GuideError, match=r"site 'z' .* joins its log p to that of site 'x'"):
        fit(mixture, "normal", X, steps=5, progress=False, kl_schedule={"z": 0.5})
