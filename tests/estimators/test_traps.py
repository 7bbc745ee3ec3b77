"""Programs on which a gradient would go wrong in silence, were it not for one line or another."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule

from ppl_vi import (
    ELBO,
    ControlVariate,
    DisARM,
    GuideError,
    ImportanceSampled,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MeasureValued,
    ModelError,
    MovingAverage,
    Pathwise,
    Relax,
    RenyiELBO,
    ScoreFunction,
    fit,
)

STICKING = Pathwise(stick_the_landing=True)


def gradients(objective, model, guide, *args, calls=60):
    """``[calls, 1 + parameters]``: the loss and its gradient."""
    found = []
    for _ in range(calls):
        loss = objective.differentiable_loss(model, guide, *args)
        parameters = [p for _, p in sorted(pyro.get_param_store().named_parameters())]
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append(torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in grads)]))
    return torch.stack(found)


def agree(ours, theirs, model, guide, *args):
    """Two objectives have the same mean loss and gradient, within 4.5 standard errors."""
    one = gradients(ours, model, guide, *args)
    other = gradients(theirs, model, guide, *args)
    error = ((one.var(0) + other.var(0)) / len(one)).sqrt() + 1e-6
    z = (one.mean(0) - other.mean(0)).abs() / error
    assert z.max() < 4.5, z


def test_importance_weights_of_a_mixed_plate_are_those_of_all_its_elements():
    def model():
        with pyro.plate("p", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
            pyro.sample("x", dist.Normal(z.flip(-1), 1.0), obs=torch.tensor([2.0, -1.0]))

    def guide():
        with pyro.plate("p", 2):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor([0.3, -0.4])), 0.7))

    wider = ImportanceSampled(lambda q: dist.Normal(q.loc, 1.2 * q.scale))
    agree(ELBO(256, wider), ELBO(256), model, guide)


def test_closed_forms_follow_scales_that_change():
    def model(beta):
        with poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def guide(beta):
        loc, scale = pyro.param("m", torch.tensor(0.5)), pyro.param("s", torch.tensor(0.8))
        pyro.sample("z", dist.Normal(loc, scale))

    objective = ELBO(256)
    objective.loss(model, guide, 1.0)
    agree(objective, Trace_ELBO(256, vectorize_particles=True), model, guide, 0.1)


@pytest.mark.parametrize("kind", ["folded", "learned transform"])
def test_a_divergence_of_transformed_distributions_is_not_trusted_blindly(kind):
    def folded(loc, scale):
        return dist.FoldedDistribution(dist.Normal(loc, scale))

    def shifted(loc, scale):
        shift = [dist.transforms.AffineTransform(loc, scale)]
        return dist.TransformedDistribution(dist.Normal(torch.tensor(0.0), 1.0), shift)

    family = folded if kind == "folded" else shifted

    def model():
        z = pyro.sample("z", family(torch.tensor(0.0), torch.tensor(1.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide():
        loc, scale = pyro.param("m", torch.tensor(0.0)), pyro.param("s", torch.tensor(1.0))
        pyro.sample("z", family(loc, scale))

    agree(ELBO(256), Trace_ELBO(256, vectorize_particles=True), model, guide)


def test_what_a_zero_argument_gates_is_seen():
    x = torch.tensor([0.5, -0.2, 1.0])

    def model(gate):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z + gate * z.sum(-1, keepdim=True), 1.0), obs=x)

    def guide(gate):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))))

    objective = ELBO(128)
    objective.loss(model, guide, 0.0)
    found = gradients(objective, model, guide, 1.0)
    logits = pyro.param("a").detach().requires_grad_()  # Pyro's own objectives would be wrong here
    z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    log_q = dist.Bernoulli(logits=logits).log_prob(z).sum(-1)
    log_p = dist.Bernoulli(torch.tensor(0.4)).log_prob(z).sum(-1)
    log_p = log_p + dist.Normal(z + z.sum(-1, keepdim=True), 1.0).log_prob(x).sum(-1)
    loss = -(log_q.exp() * (log_p - log_q)).sum()
    exact = torch.cat([loss.detach().reshape(1), *torch.autograd.grad(loss, logits)])
    deviation = (found.mean(0) - exact).abs() / (found.std(0) / len(found) ** 0.5)
    assert deviation.max() < 4.5


def rows(x):
    with pyro.plate("d", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def rows_guide(x):
    with pyro.plate("d", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.3)) * x, 0.8))


def test_the_rows_of_an_earlier_fit_are_forgotten():
    objective = ImportanceWeightedELBO(K=4, num_particles=50)
    settings = {"objective": objective, "batch_size": 32, "steps": 6, "seed": 0, "progress": False}
    few = 3 * torch.randn(36)  # a short last batch of 4, as of 100 rows
    alone = fit(rows, rows_guide, few, **settings)
    fit(rows, rows_guide, torch.randn(100), **settings)
    again = fit(rows, rows_guide, few, **settings)
    torch.testing.assert_close(again.losses, alone.losses)


def bernoulli():
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))


def test_two_modules_cannot_share_the_name_of_a_parameter():
    class Decoder(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[torch.nn.Linear](1, 1)

        def forward(self, x):
            with pyro.plate("d", len(x)):
                z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
                mean = self.linear(z.unsqueeze(-1)).squeeze(-1)
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    class Encoder(Decoder):
        def forward(self, x):
            with pyro.plate("d", len(x)):
                pyro.sample("z", dist.Normal(self.linear(x.unsqueeze(-1)).squeeze(-1), 1.0))

    with pytest.raises(ModelError, match=r"parameter 'linear.weight' is the name of two tensors"):
        fit(Decoder(), Encoder(), torch.randn(5), steps=2, progress=False)


def test_a_stochastic_guide_cannot_stick_the_landing():
    def model():
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    def guide():
        kept = torch.nn.functional.dropout(torch.ones(40), 0.5).sum()
        pyro.sample("z", dist.Normal(kept * pyro.param("w", torch.tensor(1.0)), 1.0))

    with pytest.raises(GuideError, match="site 'z': sticking the landing runs the guide twice"):
        ELBO(4, STICKING).loss_and_grads(model, guide)


def test_a_point_has_no_landing():
    def model():
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    def guide():
        pyro.sample("z", dist.Delta(pyro.param("point", torch.tensor(0.5))))

    with pytest.raises(GuideError, match="site 'z': a Delta has no score"):
        ELBO(4, {"z": STICKING}).loss_and_grads(model, guide)


@pytest.mark.parametrize(
    "proposal",
    [
        dist.Uniform(-1.0, 1.0),
        dist.Gamma(2.0, 2.0),
        dist.Bernoulli(0.5),
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
        lambda q: None,
    ],
    ids=["narrow", "half", "discrete", "vector", "nothing"],
)
def test_a_proposal_has_to_cover_the_site(proposal):
    def model():
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.5)), 1.0))

    with pytest.raises(GuideError, match="site 'z': ImportanceSampled cannot serve it"):
        ELBO(4, ImportanceSampled(proposal)).loss_and_grads(model, guide)


IMPOSSIBLE = [
    ELBO(8),
    ELBO(8, ScoreFunction(LeaveOneOut())),
    ELBO(8, MeasureValued()),
    ELBO(8, DisARM()),
    ELBO(8, Relax()),
]


@pytest.mark.parametrize("objective", IMPOSSIBLE, ids=lambda o: repr(o.estimators))
def test_impossible_states_leave_gradients_finite(objective):
    barred = torch.tensor([0.0, 0.0, -torch.inf])

    def model():
        z = pyro.sample("z", dist.Categorical(logits=barred))
        pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Categorical(logits=pyro.param("a", torch.zeros(3)) + barred))

    assert torch.isfinite(gradients(objective, model, guide, calls=5)).all()


@pytest.mark.parametrize(
    "estimator",
    ["auto", ScoreFunction(), ScoreFunction(MovingAverage()), MeasureValued()],
    ids=repr,
)
def test_impossible_draws_leave_a_bound_of_many_finite(estimator):
    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("allowed", torch.where(z > 0.5, 0.0, -torch.inf))

    found = gradients(ImportanceWeightedELBO(16, 4, estimator), model, bernoulli, calls=20)
    assert torch.isfinite(found).all()


def test_small_concentrations_leave_gradients_finite():
    def model():
        pyro.sample("z", dist.Gamma(torch.tensor(0.1), 1.0))

    def guide():
        pyro.sample("z", dist.Gamma(pyro.param("c", torch.tensor(0.05)), 1.0))

    assert torch.isfinite(gradients(ELBO(64, MeasureValued()), model, guide, calls=10)).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Relax(temperature=-1.0), ValueError, "temperature must be a positive number"),
        (lambda: Relax(rate=0.0), ValueError, "rate must be a positive number"),
        (lambda: RenyiELBO("a"), ValueError, "alpha must be a finite number"),
        (
            lambda: ELBO(4, ScoreFunction(LeaveOneOut)).loss(bernoulli, bernoulli),
            GuideError,
            r"site 'z': the baseline must be a Baseline such as LeaveOneOut\(\)",
        ),
        (
            lambda: ELBO(4, Relax(torch.nn.Linear(7, 1))).loss(bernoulli, bernoulli),
            GuideError,
            "site 'z': Relax cannot serve it",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_one_objective_serves_pairs_with_events_of_other_sizes():
    objective = ELBO(4, {"z": Relax()})
    for size in (2, 5, 3):

        def model(size=size):
            pyro.sample("z", dist.Bernoulli(torch.full((size,), 0.4)).to_event(1))

        def guide(size=size):
            logits = pyro.param(f"a{size}", torch.zeros(size))
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

        assert objective.loss_and_grads(model, guide) != 0


@pytest.mark.parametrize(
    "estimator",
    [
        ScoreFunction(LeaveOneOut()),
        ScoreFunction(MovingAverage()),
        ScoreFunction(ControlVariate()),
        MeasureValued(),
        DisARM(),
        Relax(),
    ],
    ids=repr,
)
def test_a_loss_without_gradient_is_the_same_bound(estimator):
    """Asked for before any gradient, and on the same draws after one."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    objective = ELBO(8, estimator)
    objective.loss(model, bernoulli)
    losses = []
    for road in (objective.loss, objective.loss_and_grads):
        pyro.set_rng_seed(3)
        losses.append(road(model, bernoulli))
    assert losses[0] == pytest.approx(losses[1])
