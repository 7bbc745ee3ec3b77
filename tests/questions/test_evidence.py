"""The log evidence of a fitted model, against exact values.

Statistical checks stand at 4.5 standard errors, a false alarm in 150,000.
"""

import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_answers import (
    LOADINGS,
    MEAN,
    NEW,
    PRECISION,
    ROWS,
    X,
    Y,
    at,
    close,
    exact_encoder,
    factors,
    fixed,
    hierarchy,
    normal,
    one_mean,
)

from ppl_vi import fit


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


def test_uneven_weights_are_told():
    result = fixed(one_mean, at(8.0, 0.1), X)
    with pytest.warns(UserWarning, match="log_evidence: the weights are so uneven"):
        result.log_evidence(100)
