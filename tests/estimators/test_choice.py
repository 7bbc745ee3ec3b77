"""Which estimator serves which site, and which pairs are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import (
    ELBO,
    GuideError,
    LeaveOneOut,
    Pathwise,
    ReparameterizedELBO,
    ScoreFunction,
    ScoreFunctionELBO,
)
from ppl_vi.preparation import prepare
from ppl_vi.program import Pair

LOO = ScoreFunction(LeaveOneOut())


def model():
    pyro.sample("k", dist.Categorical(torch.ones(2)))
    pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("u", dist.Uniform(0.0, 9.0))
    pyro.sample("d", dist.Normal(0.0, 1.0))
    pyro.sample("left_out", dist.Bernoulli(0.5))


def guide():
    pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.zeros(2))))
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("u", dist.Uniform(0.0, pyro.param("high", torch.tensor(2.0))))
    pyro.sample("d", dist.Delta(pyro.param("point", torch.tensor(0.5))))


PAIR = Pair(model, guide, (), {})


def chosen(estimators, num_particles=8):
    return prepare(ELBO(num_particles, estimators), PAIR).estimators


def test_auto_is_pathwise_where_it_can_be():
    assert chosen("auto") == {"k": LOO, "w": Pathwise(), "u": Pathwise(), "d": Pathwise()}


def test_sites_that_are_not_named_are_automatic():
    assert chosen({"w": ScoreFunction()}) == {
        "k": LOO,
        "w": ScoreFunction(),
        "u": Pathwise(),
        "d": Pathwise(),
    }


REFUSED = {
    "unknown site": ({"z": LOO}, 8, "site 'z' has an estimator.*'k', 'w', 'u', 'd'"),
    "summed out": ({"left_out": LOO}, 8, "site 'left_out' has an estimator"),
    "pathwise for a class": (Pathwise(), 8, "site 'k': Pathwise.*Categorical.*ScoreFunction"),
    "one particle": ({"k": LOO}, 1, "site 'k': LeaveOneOut.*num_particles to 2"),
    "one particle by default": ("auto", 1, "site 'k': LeaveOneOut.*num_particles to 2"),
    "moving support": ({"u": ScoreFunction()}, 8, "site 'u': ScoreFunction.*Uniform.*Pathwise"),
    "point": ({"d": ScoreFunction()}, 8, "site 'd': ScoreFunction.*Delta.*Pathwise"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_pair_is_refused(case):
    estimators, num_particles, message = REFUSED[case]
    with pytest.raises(GuideError, match=message):
        chosen(estimators, num_particles)


def test_a_refusal_does_not_depend_on_who_came_first():
    """An estimate without gradients may be what finds out about the pair."""

    def derived():
        guide_sites = {"u": dist.Uniform(0.0, 2.0 * pyro.param("high", torch.tensor(2.0)).exp())}
        pyro.sample("u", guide_sites["u"])

    def prior():
        pyro.sample("u", dist.Uniform(0.0, 99.0))

    with torch.no_grad():
        ELBO(2).loss(prior, derived)
    with pytest.raises(GuideError, match=r"site 'u'.*moves the support"):
        ELBO(2, ScoreFunction()).loss_and_grads(prior, derived)


def test_one_score_function_for_all_leaves_points_pathwise():
    def only_points():
        pyro.sample("d", dist.Delta(torch.tensor(0.5)))

    pair = Pair(lambda: pyro.sample("d", dist.Normal(0.0, 1.0)), only_points, (), {})
    assert prepare(ELBO(4, ScoreFunction()), pair).estimators == {"d": Pathwise()}


@pytest.mark.parametrize(
    ("objective", "site"), [(ReparameterizedELBO(4), "k"), (ScoreFunctionELBO(4), "u")], ids=str
)
def test_named_objectives_refuse_what_their_estimator_refuses(objective, site):
    with pytest.raises(GuideError, match=f"site '{site}'"):
        objective.loss_and_grads(model, guide)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 1)])
def test_leave_one_out_is_the_mean_of_the_others(shape):
    downstream = torch.randn(shape, dtype=torch.float64)
    others = [torch.cat([downstream[:s], downstream[s + 1 :]]).mean(0) for s in range(5)]
    torch.testing.assert_close(LeaveOneOut()(downstream), torch.stack(others))


def test_dependencies_are_asked_for_only_where_credit_is():
    pair = Pair(
        lambda: pyro.sample("w", dist.Normal(0.0, 1.0)),
        lambda: pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(())), 1.0)),
        (),
        {},
    )
    assert prepare(ELBO(4), pair).dependencies is None
    assert set(prepare(ELBO(4, LOO), pair).dependencies.downstream) == {"w"}
