"""What a fitted model answers, against exact answers.

Statistical checks stand at 4.5 standard errors, a false alarm in 150,000.
"""

import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from ppl_vi import DataError, GuideError, ModelError, StopReason, fit


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def still(parameters):
    """An optimizer that moves nothing: the guide stays as it is written."""
    return torch.optim.SGD(parameters, lr=0.0)


def fixed(model, guide, data, **options):
    def with_parameter(*args):
        pyro.param("unused", torch.tensor(0.0))
        guide(*args)

    return fit(
        model, with_parameter, data, optimizer=still, steps=1, progress=False, seed=0, **options
    )


def close(estimate, exact, error=None):
    error = estimate.standard_error if error is None else error
    return abs(float(estimate) - float(exact)) <= 4.5 * error + 1e-8


def normal(mean, covariance, x):
    return dist.MultivariateNormal(mean, covariance).log_prob(x).item()


# One mean with a Normal prior: N(0.5, 4), data N(mean, 2.25).

X = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0], dtype=torch.float64)
NEW = torch.tensor([1.0, -2.0], dtype=torch.float64)
PRECISION = 1 / 4 + len(X) / 2.25
MEAN = (0.5 / 4 + X.sum().item() / 2.25) / PRECISION


def one_mean(x):
    mean = pyro.sample("mean", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.5), obs=x)


def at(location, scale):
    return lambda x: pyro.sample("mean", dist.Normal(torch.tensor(location), torch.tensor(scale)))


def evidence_of(x):
    return normal(torch.full_like(x, 0.5), 2.25 * torch.eye(len(x)) + 4.0, x)


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    evidence = fixed(one_mean, at(MEAN, PRECISION**-0.5), X).log_evidence(7)
    assert evidence == pytest.approx(evidence_of(X), abs=1e-10)
    assert evidence.standard_error < 1e-7
    assert evidence.quantity == "log p(x)" and evidence.pointwise is None
    assert evidence.effective_draws == pytest.approx(7)


def test_the_standard_error_is_the_spread_of_the_estimate():
    result = fixed(one_mean, at(0.0, 1.2), X)
    found = [result.log_evidence(200) for _ in range(200)]
    spread, told = np.std(found), np.mean([one.standard_error for one in found])
    # The spread of 200 values is known to 5 %, the mean error better.
    assert abs(spread / told - 1) < 0.25
    bias = np.mean(found) - evidence_of(X)
    assert abs(bias + told**2 / 2) < 4.5 * told / 200**0.5


@pytest.mark.parametrize("batch_size", [None, 2])
def test_new_rows_have_their_predictive_density(batch_size):
    result = fixed(one_mean, at(MEAN, PRECISION**-0.5), X, batch_size=batch_size)
    assert result.log_evidence(20) == pytest.approx(evidence_of(X), abs=1e-9)
    new = result.log_evidence(4_000, data=NEW)
    assert new.quantity == "log p(x* | x)"
    assert close(new, evidence_of(torch.cat([X, NEW])) - evidence_of(X))
    each = [evidence_of(torch.cat([X, x[None]])) - evidence_of(X) for x in NEW]
    errors = new.pointwise_standard_error
    assert ((new.pointwise - torch.tensor(each)).abs() < 4.5 * errors).all()
    assert (errors < 0.02).all()


# Factor analysis with its exact posterior for each row: all latents are of rows.

LOADINGS = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.7, 0.7]], dtype=torch.float64)
ROWS = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def factors(x):
    noise = pyro.param("noise", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADINGS.mT, noise).to_event(1), obs=x)


def exact_encoder(x, widen=1.0):
    covariance = torch.linalg.inv(torch.eye(2) + LOADINGS.mT @ LOADINGS / 0.25)
    with pyro.plate("data", len(x)):
        loc = x @ LOADINGS @ covariance / 0.25
        pyro.sample("z", dist.MultivariateNormal(loc, widen * covariance))


def evidence_of_rows(x):
    covariance = LOADINGS @ LOADINGS.mT + 0.25 * torch.eye(3)
    return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_rows_by_themselves(batch_size):
    result = fixed(factors, exact_encoder, ROWS, batch_size=batch_size)
    for rows, data in ((ROWS, None), (2 * ROWS[:5], 2 * ROWS[:5])):
        evidence = result.log_evidence(3, data=data)
        torch.testing.assert_close(evidence.pointwise, evidence_of_rows(rows))
        assert evidence == pytest.approx(evidence_of_rows(rows).sum().item(), abs=1e-8)
        assert evidence.quantity == ("log p(x)" if data is None else "log p(x*)")
    again = pickle.loads(pickle.dumps(evidence))
    assert again == evidence and torch.equal(again.pointwise, evidence.pointwise)
    assert again.standard_error == evidence.standard_error


def test_rows_with_another_guide_and_many_particles():
    result = fixed(factors, lambda x: exact_encoder(x, 2.0), ROWS)
    evidence = result.log_evidence(500)
    exact = evidence_of_rows(ROWS)
    assert close(evidence, exact.sum())
    errors = evidence.pointwise_standard_error
    assert ((evidence.pointwise - exact).abs() < 4.5 * errors).all() and (errors < 0.05).all()
    assert math.isinf(result.log_evidence(1).standard_error)


def test_particles_are_taken_in_chunks(monkeypatch):
    """The same draws in any chunks would need the same random numbers; the exact guide needs none."""
    monkeypatch.setattr("ppl_vi.questions.weighing._ELEMENTS_AT_ONCE", 3 * 9 * 5)
    result = fixed(factors, exact_encoder, ROWS)
    evidence = result.log_evidence(10)
    torch.testing.assert_close(evidence.pointwise, evidence_of_rows(ROWS))
    assert evidence.effective_draws == pytest.approx(10)


# A hierarchy: a shared mean and a level for each group.

Y = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0, 3.0], dtype=torch.float64)


def hierarchy(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(level, 0.5), obs=y)


def evidence_of_groups(y):
    return normal(torch.zeros(len(y)), 1.25 * torch.eye(len(y)) + 4.0, y)


def exact_levels(y, widen=1.0):
    precision = 1 / 4 + len(y) / 1.25
    mean = pyro.sample("mean", dist.Normal(y.sum() / 1.25 / precision, precision**-0.5))
    with pyro.plate("groups", len(y)):
        loc = (mean + y / 0.25) / (1 + 1 / 0.25)
        pyro.sample("level", dist.Normal(loc, widen * 5**-0.5))


def test_shared_latents_have_several_draws_of_the_rows_each():
    exact = evidence_of_groups(Y)
    assert fixed(hierarchy, exact_levels, Y).log_evidence(5) == pytest.approx(exact, abs=1e-9)
    wide = fixed(hierarchy, lambda y: exact_levels(y, 1.6), Y).log_evidence(400)
    assert close(wide, exact)
    # One draw of all levels weighs Π (w_i), of relative variance (1 + v)^6 - 1 with one v for each; 20
    # draws of each divide v by 20.
    ratio = 1.6
    v = ratio**2 / math.sqrt(2 * ratio**2 - 1) - 1
    expected = math.sqrt(((1 + v / 20) ** 6 - 1) / 400)
    assert wide.standard_error == pytest.approx(expected, rel=0.5)


def test_latents_of_new_rows_are_fitted_where_the_guide_does_not_read_them():
    def guide(y):
        precision = 1 / 4 + len(Y) / 1.25
        pyro.sample("mean", dist.Normal(Y.sum() / 1.25 / precision, precision**-0.5))
        with pyro.plate("groups", len(y)):
            pyro.sample("level", dist.Normal(pyro.param("loc", torch.zeros(len(Y))), 0.5))

    new = torch.tensor([4.0, -1.0], dtype=torch.float64)
    evidence = fixed(hierarchy, guide, Y).log_evidence(2_000, data=new)
    exact = evidence_of_groups(torch.cat([Y, new])) - evidence_of_groups(Y)
    assert close(evidence, exact) and evidence.standard_error < 0.05
    assert evidence.pointwise.shape == (2,)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_new_rows_of_a_plate_that_names_the_size_of_the_fit(batch_size):
    """The likelihood is narrow, so that a proposal for another row than its own finds nothing."""

    def model(y):
        with pyro.plate("groups", len(Y), subsample_size=len(y)):
            level = pyro.sample("level", dist.Normal(0.0, 3.0))
            pyro.sample("y", dist.Normal(level, 0.1), obs=y)

    settings = {"steps": 1, "seed": 0, "progress": False, "compile": False}
    result = fit(model, "normal", Y, batch_size=batch_size, **settings)
    new = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    pyro.set_rng_seed(1)  # not the numbers that the proposals were fitted on
    evidence = result.log_evidence(1_000, data=new)
    exact = dist.Normal(0.0, math.hypot(3.0, 0.1)).log_prob(new)
    assert close(evidence, exact.sum()) and evidence.standard_error < 0.1
    torch.testing.assert_close(evidence.pointwise, exact, atol=0.1, rtol=0)


# Discrete latents, summed out: a mixture of two, by enumeration.


def mixture_of_two(x):
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 2.0]), 0.7))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def evidence_of_mixture(x):
    """By enumeration of all assignments: given these, all is Gaussian."""
    total = []
    for states in range(2 ** len(x)):
        z = torch.tensor([(states >> i) & 1 for i in range(len(x))])
        log_p = torch.tensor([0.3, 0.7]).log()[z].sum().item()
        same = (z[:, None] == z[None]).double()
        loc = torch.tensor([-1.0, 2.0])[z]
        total.append(log_p + normal(loc, torch.eye(len(x)) + 0.49 * same, x))
    return torch.tensor(total).logsumexp(0).item()


def test_discrete_latents_are_summed_out():
    x = torch.tensor([-1.5, 0.2, 1.9, 2.4, 2.2])
    exact = evidence_of_mixture(x)

    def guide(x):
        with pyro.plate("components", 2):
            pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 2.0]), 0.6))

    by_hand, swept = fixed(mixture_of_two, guide, x), fit(mixture_of_two, "cavi", x, progress=False)
    for result in (by_hand, swept):
        evidence = result.log_evidence(4_000)
        assert close(evidence, exact) and evidence.standard_error < 0.05
    assert swept.elbo < exact - 0.02  # its labels are drawn there, and summed out here
    new = swept.log_evidence(500, data=x[:2])
    assert new.quantity == "log p(x* | x)" and new.pointwise.shape == (2,)


# Correlated latents of a linear Gaussian model, the guide being its exact posterior.

DESIGN = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
DESIGN[:, 1] += DESIGN[:, 0]
TARGET = DESIGN @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64) + 0.3
COVARIANCE = torch.linalg.inv(DESIGN.mT @ DESIGN + torch.eye(3) / 4)
LOCATION = COVARIANCE @ DESIGN.mT @ TARGET


def regression(x, y):
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    last = pyro.sample("last", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        center = slopes @ x[:, :2].mT + last[..., None] * x[:, 2]
        pyro.sample("y", dist.Normal(center, 1.0), obs=y)


def jointly(x, y):
    joint = dist.MultivariateNormal(LOCATION, COVARIANCE)
    u = pyro.sample("u", joint, infer={"is_auxiliary": True})
    pyro.sample("slopes", dist.Delta(u[..., :2], event_dim=1))
    pyro.sample("last", dist.Delta(u[..., 2]))


def posterior(model=regression, guide=jointly):
    return fixed(model, guide, (DESIGN, TARGET))


def test_marginals_of_a_joint_gaussian():
    result = posterior()
    both = result.marginal(["last", "slopes"])
    order = [2, 0, 1]
    assert both.exact
    torch.testing.assert_close(both.mean["slopes"], LOCATION[:2])
    torch.testing.assert_close(both.covariance, COVARIANCE[order][:, order])
    draws = both.sample(50)
    exact = dist.MultivariateNormal(LOCATION, COVARIANCE)
    u = torch.cat([draws["slopes"], draws["last"][:, None]], -1)
    torch.testing.assert_close(both.log_prob(draws), exact.log_prob(u))
    one = result.marginal("last").distributions["last"]
    assert isinstance(one, dist.Normal)
    torch.testing.assert_close(one.scale**2, COVARIANCE[2, 2])


def test_the_conditional_of_a_joint_gaussian_is_in_closed_form():
    result, value = posterior(), torch.tensor(-2.0)
    given = result.conditional({"last": value})
    assert given.stop_reason is StopReason.CLOSED_FORM and given.num_steps == 0
    gain = COVARIANCE[:2, 2] / COVARIANCE[2, 2]
    marginal = given.marginal("slopes")
    torch.testing.assert_close(marginal.mean["slopes"], LOCATION[:2] + gain * (value - LOCATION[2]))
    expected = COVARIANCE[:2, :2] - torch.outer(gain, COVARIANCE[2, :2])
    torch.testing.assert_close(marginal.covariance, expected)
    # log p(x, last = value), and the guide is exact.
    data = normal(torch.zeros(12), torch.eye(12) + 4 * DESIGN @ DESIGN.mT, TARGET)
    own = dist.Normal(LOCATION[2], COVARIANCE[2, 2].sqrt()).log_prob(value).item()
    assert given.log_evidence(5) == pytest.approx(data + own, abs=1e-8)
    assert given.elbo == pytest.approx(data + own, abs=1e-8)
    torch.testing.assert_close(given.mode()["slopes"], marginal.mean["slopes"], atol=1e-6, rtol=0)


def test_a_conditional_that_does_not_hold_far_out_is_fitted(monkeypatch):
    """A guide that is exact near the data, and wrong by far at ten standard deviations."""

    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a + 0.3 * a**3, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 0.5), obs=x)

    def guide(x):
        u = pyro.sample(
            "u",
            dist.MultivariateNormal(torch.zeros(2), torch.tensor([[0.01, 0.01], [0.01, 0.02]])),
            infer={"is_auxiliary": True},
        )
        pyro.sample("a", dist.Delta(u[..., 0]))
        pyro.sample("b", dist.Delta(u[..., 1]))

    asked = []

    def fitted(model, guide, *args, **options):
        asked.append(guide)
        raise StopIteration

    monkeypatch.setattr("ppl_vi.fitting.fit", fitted)
    result = fixed(model, guide, torch.zeros(5))
    near = result.conditional({"a": 0.05})
    assert near.stop_reason is StopReason.CLOSED_FORM and not asked
    assert near.marginal("b").mean["b"].item() == pytest.approx(0.05)
    with pytest.raises(StopIteration):
        result.conditional({"a": 2.0})
    assert asked == ["multivariate_normal"]


def test_other_guides_are_fitted_again():
    """Coordinate ascent is exact on one Gaussian block, and mean field cannot condition itself."""
    swept = fit(regression, "cavi", (DESIGN, TARGET), progress=False, compile=False)
    given = swept.conditional({"last": -2.0}, compile=False)
    gain = COVARIANCE[:2, 2] / COVARIANCE[2, 2]
    expected = LOCATION[:2] + gain * (-2.0 - LOCATION[2])
    assert given.stop_reason is StopReason.CONVERGED
    torch.testing.assert_close(given.marginal("slopes").mean["slopes"], expected)

    def mean_field(x, y):
        pyro.sample("slopes", dist.Normal(LOCATION[:2], 0.1).to_event(1))
        pyro.sample("last", dist.Normal(LOCATION[2], 0.1))

    given = posterior(guide=mean_field).conditional({"last": -2.0}, steps=1, optimizer=still)
    assert given.stop_reason is StopReason.STEPS and "slopes" in given.sample(2)


def test_another_fit_keeps_the_options_of_the_guide():
    from pyro.infer.autoguide import AutoMultivariateNormal

    from ppl_vi.guides import LowRankGuide, MixtureGuide

    class Scaled(AutoMultivariateNormal):
        def __init__(self, model, width):
            super().__init__(model, init_scale=width)

    def plain(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    settings = {"steps": 1, "progress": False, "seed": 0, "compile": False}
    for guide, name in ((MixtureGuide, "num_components"), (LowRankGuide, "rank")):
        given = fit(plain, guide(plain, **{name: 3}), X, **settings).conditional(
            {"b": 1.0}, **settings
        )
        assert type(given.guide) is guide and getattr(given.guide, name) == 3
        assert given.sample(2)["a"].shape == (2,)
    result = fit(plain, Scaled(plain, 0.3), X, **settings)
    assert result.conditional({"b": 1.0}, **settings).sample(2)["a"].shape == (2,)


def test_data_may_be_inferred_too():
    result = fit(regression, "cavi", (DESIGN, TARGET), progress=False, compile=False)
    given = result.conditional({"last": 1.0, "slopes": [1.0, -1.0], "y": None}, compile=False)
    predicted = given.marginal("y")
    exact = DESIGN @ torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(predicted.mean["y"], exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(predicted.covariance, torch.eye(12), atol=1e-6, rtol=0)


def test_parameters_of_the_model_are_held_in_a_conditional():
    decoder = torch.nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        noise = pyro.param("noise", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            mean = decoder(z) + shift[..., None]
            pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)

    result = fit(model, "normal", ROWS, steps=20, seed=0, progress=False)
    kept = decoder.weight.detach().clone()
    given = result.conditional({"shift": torch.zeros(9)}, steps=20)
    assert torch.equal(decoder.weight, kept) and decoder.weight.requires_grad
    assert torch.equal(given.params["noise"], result.params["noise"])
    assert not torch.equal(result.params["noise"], torch.tensor(1.0))
    before = given.mode()["z"]
    with torch.no_grad():
        decoder.weight.add_(3.0)  # of a later fit: the results keep theirs
    torch.testing.assert_close(given.mode()["z"], before)


def test_a_mode_of_correlated_latents():
    mode = posterior().mode()
    torch.testing.assert_close(mode["slopes"], LOCATION[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(mode["last"], LOCATION[2], atol=1e-6, rtol=0)


# Beta-Bernoulli: other coordinates than the guide's.

TOSSES = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)


def coin(a, b):
    def model(x):
        p = pyro.sample("p", dist.Beta(a, b))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    return model


def logit_normal(x):
    u = pyro.sample("u", dist.Normal(0.3, 0.8), infer={"is_auxiliary": True})
    p = u.sigmoid()
    pyro.sample("p", dist.Delta(p, -(p * (1 - p)).log()))


def test_a_probability():
    result = fixed(coin(2.0, 3.0), logit_normal, TOSSES)
    exact = math.lgamma(5) - math.lgamma(2) - math.lgamma(3)
    exact += math.lgamma(5) + math.lgamma(4) - math.lgamma(9)
    assert close(result.log_evidence(2_000), exact)
    assert result.mode()["p"].item() == pytest.approx(4 / 7, abs=1e-6)
    marginal = result.marginal("p")

    def density(p):
        return marginal.log_prob({"p": torch.tensor(p)}).exp().item()

    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1, abs=1e-6)
    logit = math.log(0.3 / 0.7)
    assert density(0.3) == pytest.approx(stats.norm.pdf(logit, 0.3, 0.8) / 0.21)
    mean = integrate.quad(lambda p: p * density(p), 0, 1)[0]
    assert marginal.mean["p"].item() == pytest.approx(mean, abs=4.5 * 0.2 / 100)


def test_factors_of_their_own():
    result = fixed(coin(2.0, 3.0), lambda x: pyro.sample("p", dist.Beta(5.0, 4.0)), TOSSES)
    marginal = result.marginal("p")
    assert marginal.exact and isinstance(marginal.distributions["p"], dist.Beta)
    assert marginal.mean["p"].item() == pytest.approx(5 / 9)
    twice, at = result.marginal(["p", "p"]), {"p": torch.tensor(0.3)}
    assert twice.log_prob(at) == marginal.log_prob(at) and twice.covariance.shape == (1, 1)
    assert result.log_evidence(3).standard_error < 1e-7


def test_a_marginal_without_a_closed_form_is_by_draws():
    def guide(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", len(y)):
            pyro.sample("level", dist.Normal(mean.exp(), 0.5))

    marginal = fixed(hierarchy, guide, Y).marginal("level")
    assert not marginal.exact
    draws = marginal.sample(4_000)["level"]
    assert draws.shape == (4_000, 6)
    error = math.exp(0.5) * math.sqrt(math.e - 1) / 4_000**0.5
    assert abs(draws[:, 0].mean().item() - math.exp(0.5)) < 4.5 * error
    with pytest.raises(GuideError, match="no density of 'level' in closed form"):
        marginal.log_prob({"level": draws[0]})


def two_modes(x):
    """Mass 0.97 and 0.03, the latter never among a few draws."""
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    pyro.sample("c", dist.Normal(b, 1.0))


def rare_component(x):
    which = pyro.sample("which", dist.Bernoulli(0.03), infer={"is_auxiliary": True})
    a = pyro.sample("a", dist.Normal(-4.0 + 8.0 * which, 0.5))
    pyro.sample("b", dist.Delta(a + 1.0))
    pyro.sample("c", dist.Normal(0.0, 1.0))


def test_a_component_that_is_rarely_drawn_is_no_gaussian(monkeypatch):
    result = fixed(two_modes, rare_component, X)
    for site in ("a", "b"):
        marginal = result.marginal(site)
        assert not marginal.exact
        # 10,000 draws have 300 of the other mode, give or take 17.
        assert 220 < (marginal.sample(10_000)[site] > 0).sum() < 380
    assert result.marginal("c").exact and not result.marginal(["a", "c"]).exact
    monkeypatch.setattr("ppl_vi.fitting.fit", lambda model, guide, *args, **options: result)
    assert result.conditional({"b": 0.0}).stop_reason is not StopReason.CLOSED_FORM


def test_a_bend_of_gaussian_noise_is_no_gaussian():
    def guide(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal((a - 1.0).relu(), 1.0))
        pyro.sample("c", dist.Normal(b.abs(), 1.0))

    result = fixed(two_modes, guide, X)
    assert [result.marginal(site).exact for site in "abc"] == [True, False, False]


def test_modes_at_and_beyond_an_edge():
    def positive(x):
        s = pyro.sample("s", dist.Exponential(5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(s, 1.0), obs=x)

    def guide(x):
        pyro.sample("s", dist.Exponential(5.0))

    assert fixed(positive, guide, -torch.ones(4)).mode()["s"] < 1e-5
    for tosses in (torch.ones(4), torch.zeros(4)):
        with pytest.raises(ModelError, match=r"no maximum was found: .* along site 'p'"):
            fixed(coin(0.5, 0.5), logit_normal, tosses).mode()

    def schools(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("groups", len(y)):
            level = pyro.sample("level", dist.Normal(mean, scale))
            pyro.sample("y", dist.Normal(level, 10.0), obs=10 * y)

    def apart(y):
        pyro.sample("mean", dist.Normal(0.0, 5.0))
        pyro.sample("scale", dist.LogNormal(1.0, 0.5))
        with pyro.plate("groups", len(y)):
            pyro.sample("level", dist.Normal(10 * y, 5.0))

    with pytest.raises(ModelError, match="no maximum was found"):
        fixed(schools, apart, Y).mode()


# Bad input.


def test_what_cannot_be_asked():
    result = posterior()
    cases = [
        (lambda: result.log_evidence(0), ValueError, "num_particles must be a positive integer"),
        (lambda: result.marginal("slope"), ValueError, r"site 'slope' is not one of the latents"),
        (lambda: result.marginal([]), ValueError, "no site is named"),
        (lambda: result.conditional({"slope": 1.0}), ValueError, "'slope' is not one of the sites"),
        (lambda: result.conditional({"last": [1.0, 2.0]}), ValueError, r"has shape \(2,\), but"),
        (lambda: result.conditional({"y": TARGET}), ValueError, "'y' is data already"),
        (lambda: result.conditional({"last": None}), ValueError, "'last' is latent already"),
        (
            lambda: result.conditional({"last": 1.0, "slopes": [0.0, 0.0]}),
            ValueError,
            "every latent of the model has a value",
        ),
        (
            lambda: result.marginal("last").log_prob({"last": torch.zeros(2), "slopes": X}),
            ValueError,
            "site 'slopes' is not one of the sites of the marginal",
        ),
        (
            lambda: result.marginal("last").log_prob({}),
            ValueError,
            "site 'last' has no value",
        ),
    ]
    for ask, error, message in cases:
        with pytest.raises(error, match=message):
            ask()


def test_values_outside_the_support():
    result = fixed(coin(2.0, 3.0), logit_normal, TOSSES)
    with pytest.raises(ValueError, match="'p' lies outside its support"):
        result.marginal("p").log_prob({"p": torch.tensor([0.5, 1.5])})
    two = fixed(
        lambda x: (coin(2.0, 3.0)(x), pyro.sample("q", dist.Normal(0.0, 1.0))),
        lambda x: (logit_normal(x), pyro.sample("q", dist.Normal(0.0, 1.0))),
        TOSSES,
    )
    with pytest.raises(ValueError, match="'p' lies outside its support"):
        two.conditional({"p": 1.5})
    with pytest.raises(DataError, match="outside the support"):
        result.log_evidence(10, data=torch.tensor([2.0]))


def test_points_rows_and_subsamples():
    point = fixed(one_mean, lambda x: pyro.sample("mean", dist.Delta(torch.tensor(0.1))), X)
    with pytest.raises(GuideError, match="site 'mean': the guide holds it at a point"):
        point.log_evidence(10)
    # New rows at a point: what a plug-in estimate predicts.
    new = point.log_evidence(3, data=NEW)
    assert new == pytest.approx(dist.Normal(0.1, 1.5).log_prob(NEW).sum().item(), abs=1e-9)
    batches = fixed(factors, exact_encoder, ROWS, batch_size=4)
    with pytest.raises(ValueError, match="'z' stands in the plate of minibatches"):
        batches.conditional({"z": torch.zeros(9, 2)})

    def subsampling(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    told = "plate 'data' has 2 of 5 elements, .* but {} needs all of them"
    with pytest.raises(ModelError, match=told.format("a log evidence")):
        fixed(subsampling, at(0.0, 1.0), X).log_evidence(10)
    with pytest.raises(ModelError, match=told.format("a mode")):
        fixed(subsampling, at(0.0, 1.0), X).mode()
    with pytest.raises(ModelError, match=told.format("the guide 'laplace'")):
        fit(subsampling, "laplace", X, steps=1, progress=False)


def test_a_conditional_of_a_model_that_subsamples_is_fitted(monkeypatch):
    """Whether a closed form holds would be told by a subsample, not by the data."""

    def subsampling(x, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        last = pyro.sample("last", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            center = slopes @ x[rows, :2].mT + last[..., None] * x[rows, 2]
            pyro.sample("y", dist.Normal(center, 1.0), obs=y[rows])

    result = posterior(subsampling)
    monkeypatch.setattr("ppl_vi.fitting.fit", lambda *args, **options: result)
    assert result.conditional({"last": 1.0}).stop_reason is not StopReason.CLOSED_FORM


def test_uneven_weights_are_told():
    result = fixed(one_mean, at(8.0, 0.1), X)
    with pytest.warns(UserWarning, match="log_evidence: the weights are so uneven"):
        result.log_evidence(100)


def test_a_guide_of_several_modes_keeps_them_when_conditioned() -> None:
    """Four standard errors of a fair coin: a false alarm in 16,000 runs."""

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a * a + b, 0.3), obs=torch.tensor(4.0))

    result = fit(model, "mixture", steps=500, seed=0, progress=False)
    given = result.conditional({"b": torch.tensor(0.5)}, steps=500, seed=0)
    positive = (given.sample(2_000)["a"] > 0).double().mean().item()
    assert abs(positive - 0.5) < 4 * 0.5 / 2_000**0.5 + 0.02  # the weights are learned to 0.02
