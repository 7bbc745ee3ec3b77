"""The mixture of Gaussians: its gradient against quadrature, and where it starts."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import ELBO, LeaveOneOut, ScoreFunction, fit
from ppl_vi.guides import MixtureGuide
from ppl_vi.program import Pair
from ppl_vi.starts import Mode, Whitening, pooled, shares

SITE = "_MixtureGuide_component"
DRAWN = {SITE: ScoreFunction(LeaveOneOut())}
PARTICLES = 32


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def bent():
    u = pyro.sample("u", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.sample("x", dist.Normal(u[..., 0] ** 2 + u[..., 1], 1.0), obs=torch.tensor(2.0))


def log_bent(u):
    prior = dist.Normal(0.0, 2.0).log_prob(u).sum(-1)
    return prior + dist.Normal(u[..., 0] ** 2 + u[..., 1], 1.0).log_prob(torch.tensor(2.0))


def guide_off_its_start(covariance):
    guide = MixtureGuide(bent, num_components=3, covariance=covariance)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return guide


def exact(guide):
    """The ELBO by quadrature over e, with gradients."""
    axis = torch.linspace(-9.0, 9.0, 301)
    e = torch.cartesian_prod(axis, axis)
    log_q = guide.distribution().log_prob(e)
    log_p = log_bent(guide.unwhitened(e)) + guide.factor.log().sum()
    return (log_q.exp() * (log_p - log_q)).sum() * (axis[1] - axis[0]) ** 2


def gradients(guide, estimators, count):
    """``[count, parameters]`` of the ELBO, and ``[count]`` of its values."""
    objective = ELBO(PARTICLES, estimators=estimators)
    rows, values = [], []
    for _ in range(count):
        bound, total = objective.estimate(Pair(bent, guide, (), {}))
        rows.append(torch.cat([g.reshape(-1) for g in grad(total, guide)]))
        values.append(bound)
    return torch.stack(rows), torch.stack(values)


def grad(value, guide):
    return torch.autograd.grad(value, list(guide.parameters()), materialize_grads=True)


@pytest.mark.parametrize(
    ("estimators", "covariance"), [("auto", "full"), ("auto", "diagonal"), (DRAWN, "full")], ids=str
)
def test_the_gradient_is_unbiased(estimators, covariance):
    """About 20 numbers at 4 standard errors of 40 estimates: a false alarm in 200 seeds."""
    guide = guide_off_its_start(covariance)
    value = exact(guide)
    wanted = torch.cat([g.reshape(-1) for g in grad(value, guide)])
    found, values = gradients(guide, estimators, 40)
    error = found.std(0) / math.sqrt(len(found)) + 1e-9
    assert ((found.mean(0) - wanted).abs() / error).max() < 4
    assert abs(values.mean() - value) < 4 * values.std() / math.sqrt(len(values))


def test_the_sum_over_components_is_less_noisy_than_drawing_them():
    guide = guide_off_its_start("full")
    summed, drawn = (gradients(guide, e, 40)[0].var(0).sum() for e in ("auto", DRAWN))
    assert (
        summed < drawn / 3
    )  # the same number of draws of each: a third as many for each component


def test_the_density_is_that_of_the_draws():
    """E_q[p / q] = p(x), whatever the parameters."""
    guide = guide_off_its_start("full")
    axis = torch.linspace(-15.0, 15.0, 601)
    grid = torch.cartesian_prod(axis, axis)
    evidence = log_bent(grid).logsumexp(0).exp() * (axis[1] - axis[0]) ** 2
    e = guide.distribution().sample((40_000,))
    log_q = guide.distribution().log_prob(e) - guide.factor.log().sum()
    weights = (log_bent(guide.unwhitened(e)) - log_q).exp()
    # The guide's tails are thinner than the posterior's, so that weights are bounded by hand.
    assert weights.mean() < evidence + 4 * weights.std() / 200


def test_both_modes_are_found_and_weighed():
    def model():
        u = pyro.sample("u", dist.Normal(0.0, 20.0))
        modes = dist.Normal(torch.tensor([-10.0, 10.0]), torch.tensor([0.5, 0.05]))
        pyro.factor("modes", (modes.log_prob(u.unsqueeze(-1)) + MASSES.log()).logsumexp(-1))

    guide = MixtureGuide(model, num_components=3, num_searches=4)
    result = fit(model, guide, steps=1, optimizer=still, seed=0, progress=False)
    draws = result.sample(4_000)["u"]
    assert abs((draws > 0).double().mean() - 0.3) < 0.05
    assert abs(draws[draws > 0].mean() - 10) < 0.05 and abs(draws[draws < 0].mean() + 10) < 0.5


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


MASSES = torch.tensor([0.7, 0.3])


def test_one_whitening_for_several_modes():
    sizes = {"a": 2, "b": 1}
    roots = [torch.randn(3, 3).tril() for _ in range(3)]
    for root in roots:
        root.diagonal().abs_().add_(0.1)
    modes = [
        Mode(Whitening(sizes, torch.randn(3), root), log_mass)
        for root, log_mass in zip(roots, [0.0, -1.0, 0.5], strict=True)
    ]
    modes.append(Mode(Whitening(sizes, torch.randn(3), torch.rand(3) + 0.1), -0.2))
    weights = shares(modes)
    torch.testing.assert_close(weights, torch.tensor([0.0, -1.0, 0.5, -0.2]).softmax(0))
    whole = pooled(modes)
    center = sum(w * mode.whitening.location for w, mode in zip(weights, modes, strict=True))
    second = [
        m.whitening.matrix() @ m.whitening.matrix().mT
        + torch.outer(m.whitening.location - center, m.whitening.location - center)
        for m in modes
    ]
    covariance = sum(w * part for w, part in zip(weights, second, strict=True))
    torch.testing.assert_close(whole.location, center)
    torch.testing.assert_close(whole.factor @ whole.factor.mT, covariance)
    assert (whole.factor.diagonal() > 0).all() and whole.factor.triu(1).abs().max() < 1e-12
    assert pooled(modes[:1]) is modes[0].whitening


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_components": 0}, "num_components must be a positive integer"),
        ({"num_searches": 1.5}, "num_searches must be a positive integer"),
        ({"covariance": "round"}, "covariance must be 'full' or 'diagonal'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MixtureGuide(bent, **settings)
