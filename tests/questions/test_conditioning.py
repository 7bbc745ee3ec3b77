"""A fitted posterior given some of its sites, against exact answers.

Statistical checks stand at 4.5 standard errors, a false alarm in 150,000.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_answers import (
    COVARIANCE,
    DESIGN,
    LOCATION,
    ROWS,
    TARGET,
    X,
    fixed,
    normal,
    posterior,
    regression,
    still,
)

from ppl_vi import StopReason, fit


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


@pytest.mark.slow
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
