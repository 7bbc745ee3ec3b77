"""Which estimator serves which site, and which pairs are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import (
    ELBO,
    DisARM,
    Enumerate,
    ForwardKL,
    GuideError,
    ImportanceSampled,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Pathwise,
    Relax,
    RenyiELBO,
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
    pyro.sample("n", dist.Poisson(2.0))
    pyro.sample("g", dist.GammaPoisson(2.0, 1.0))
    pyro.sample("left_out", dist.Bernoulli(0.5))


def guide():
    pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.zeros(2))))
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("u", dist.Uniform(0.0, pyro.param("high", torch.tensor(2.0))))
    pyro.sample("d", dist.Delta(pyro.param("point", torch.tensor(0.5))))
    pyro.sample("n", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))
    pyro.sample("g", dist.GammaPoisson(pyro.param("shape", torch.tensor(2.0)), 1.0))


COUNTS = {"n": LOO, "g": LOO}
PAIR = Pair(model, guide, (), {})


def chosen(estimators, num_particles=8):
    return prepare(ELBO(num_particles, estimators), PAIR).estimators


def test_auto_enumerates_what_is_finite_and_is_pathwise_where_it_can_be():
    assert chosen("auto") == {
        "k": Enumerate(),
        "w": Pathwise(),
        "u": Pathwise(),
        "d": Pathwise(),
        **COUNTS,
    }


def test_sites_that_are_not_named_are_automatic():
    assert chosen({"w": ScoreFunction()}) == {
        "k": Enumerate(),
        "w": ScoreFunction(),
        "u": Pathwise(),
        "d": Pathwise(),
        **COUNTS,
    }


STL, IW = Pathwise(stick_the_landing=True), ImportanceWeightedELBO
REFUSED = {
    "unknown site": (ELBO(8, {"z": LOO}), "site 'z' has an estimator.*'k', 'w', 'u', 'd'"),
    "summed out": (ELBO(8, {"left_out": LOO}), "site 'left_out' has an estimator.*sums it out"),
    "pathwise for a class": (ELBO(8, Pathwise()), "site 'k': Pathwise.*Categorical.*ScoreFunction"),
    "one particle": (ELBO(1, {"k": LOO}), "site 'k': LeaveOneOut.*num_particles to 2"),
    "moving support": (
        ELBO(8, {"u": ScoreFunction()}),
        "site 'u': ScoreFunction.*Uniform.*Pathwise",
    ),
    "point": (ELBO(8, {"d": ScoreFunction()}), "site 'd': ScoreFunction.*Delta.*Pathwise"),
    "enumerate a line": (ELBO(8, {"w": Enumerate()}), "site 'w': Enumerate.*Normal.*Pathwise"),
    "enumerate counts": (
        ELBO(8, {"n": Enumerate()}),
        "site 'n': Enumerate.*Poisson.*ScoreFunction",
    ),
    "disarm a line": (ELBO(8, {"w": DisARM()}), "site 'w': DisARM.*Normal.*Pathwise"),
    "disarm an odd one": (ELBO(3, {"k": DisARM()}), "site 'k': DisARM.*pairs.*even"),
    "relax counts": (ELBO(8, {"n": Relax()}), "site 'n': Relax.*Poisson.*ScoreFunction"),
    "measure of a uniform": (ELBO(8, {"u": MeasureValued()}), "site 'u': MeasureValued.*Pathwise"),
    "measure of a gamma-poisson": (
        ELBO(8, {"g": MeasureValued()}),
        "site 'g': MeasureValued.*GammaPoisson.*ScoreFunction",
    ),
    "importance of nothing": (
        ELBO(8, {"k": ImportanceSampled(3.0)}),
        "site 'k': ImportanceSampled needs a proposal",
    ),
    "a proposal that fails": (
        ELBO(8, {"k": ImportanceSampled(lambda q: dist.Normal(q.loc, 1.0))}),
        "site 'k'",
    ),
    "enumerate in a log": (
        IW(3, 4, {"k": Enumerate()}),
        "site 'k': Enumerate.*mean of log-weights",
    ),
    "disarm in a log": (IW(3, 4, {"k": DisARM()}), "site 'k': DisARM.*ImportanceWeightedELBO"),
    "relax in a log": (RenyiELBO(0.5, 3, 4, {"k": Relax()}), "site 'k': Relax.*RenyiELBO"),
    "sticking in a log": (IW(3, 4, {"w": STL}), "site 'w': Pathwise.stick_the_landing.*Pathwise()"),
    "importance in a log": (
        IW(3, 4, {"k": ImportanceSampled(dist.Categorical(torch.ones(2)))}),
        "site 'k': ImportanceSampled.*mean of log-weights",
    ),
    "doubly without paths": (
        IW(3, 4, doubly_reparameterized=True),
        "site 'k': doubly_reparameterized needs pathwise",
    ),
    "choosing for the wake phase": (ForwardKL(4, 4, {"k": LOO}), "site 'k': ForwardKL.*'auto'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_pair_is_refused(case):
    objective, message = REFUSED[case]
    with pytest.raises(GuideError, match=message):
        objective.plan(PAIR)
    with pytest.raises(GuideError, match=message):
        objective.loss_and_grads(*PAIR[:2])


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
    assert prepare(ELBO(4, analytic=False), pair).dependencies is None
    assert set(prepare(ELBO(4, LOO), pair).dependencies.downstream) == {"w"}


def test_one_particle_takes_a_baseline_that_needs_no_other():
    assert chosen("auto", 1)["n"] == ScoreFunction(MovingAverage())


def test_enumerate_is_accepted_where_the_model_sums_out():
    assert "left_out" not in chosen({"left_out": Enumerate()})


@pytest.mark.parametrize("wrong", [3, {"k": "score"}, "pathwise", ScoreFunction])
def test_what_is_no_estimator_is_said(wrong):
    with pytest.raises(TypeError, match="estimators"):
        chosen(wrong)


def many(count, together):
    """``count`` sites of four states, in one factor all or each in its own."""
    states = torch.ones(4)

    def model():
        drawn = [pyro.sample(f"z{i}", dist.Categorical(states)) for i in range(count)]
        if together:
            pyro.sample("x", dist.Normal(sum(drawn), 1.0), obs=torch.tensor(1.0))
        else:
            for i, z in enumerate(drawn):
                pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide():
        for i in range(count):
            logits = pyro.param(f"a{i}", torch.zeros(4))
            pyro.sample(f"z{i}", dist.Categorical(logits=logits))

    return Pair(model, guide, (), {})


def test_as_many_states_as_can_be_afforded_are_enumerated():
    kinds = [type(e) for e in prepare(ELBO(2), many(7, True)).estimators.values()]
    assert (kinds.count(Enumerate), kinds.count(ScoreFunction)) == (5, 2)
    with pytest.raises(GuideError, match="site 'z5': Enumerate would make more than 1024"):
        prepare(ELBO(2, Enumerate()), many(7, True))


def test_sites_without_a_common_factor_share_an_axis():
    plan = prepare(ELBO(2), many(7, False))
    assert set(plan.estimators.values()) == {Enumerate()}
    assert plan.grid.axes == (4,)


@pytest.mark.parametrize("estimator", [Enumerate(), MeasureValued()], ids=repr)
def test_elements_that_the_program_mixes_are_not_varied_apart(estimator):
    def mixing():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    def mixing_guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))))

    pair = Pair(mixing, mixing_guide, (), {})
    with pytest.raises(
        GuideError, match=r"site 'z': .*site 'x' depends on all elements of .*'data'"
    ):
        prepare(ELBO(4, estimator), pair)
    assert prepare(ELBO(4), pair).estimators == {"z": LOO}


@pytest.mark.parametrize("estimator", [Enumerate(), MeasureValued(), DisARM()], ids=repr)
def test_a_guide_that_runs_one_by_one_keeps_to_simple_estimators(estimator):
    def one():
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.4)))

    def branching():
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.0))))
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.3 if z.item() else 0.8)))

    pair = Pair(one, branching, (), {})
    with pytest.raises(GuideError, match=r"site 'z': .* needs all particles at once"):
        prepare(ELBO(4, {"z": estimator}), pair)
    assert prepare(ELBO(4), pair).estimators == {"z": LOO, "y": LOO}


def test_a_subsampled_plate_inside_a_logarithm_is_refused():
    def of_rows(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    def of_rows_guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with pytest.raises(GuideError, match="plate 'data' is subsampled"):
        ImportanceWeightedELBO(4).plan(Pair(of_rows, of_rows_guide, (torch.zeros(10),), {}))
