"""Objectives inside Pyro: signs, immutability, and nothing kept about a model."""

import copy
import dataclasses
import gc
import pickle
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam

from ppl_vi import (
    ELBO,
    GuideError,
    LeaveOneOut,
    Pathwise,
    ReparameterizedELBO,
    ScoreFunction,
    ScoreFunctionELBO,
    memory,
    preparation,
)

DATA = torch.tensor([0.3, 1.2, -0.4])


def model(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(mu + k, 1.0), obs=torch.as_tensor(data))


def guide(data):
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), scale))
    with pyro.plate("data", len(data)):
        pyro.sample(
            "k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.1)).expand(len(data)))
        )


def mean_field(data):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))


OBJECTIVES = [
    ELBO(num_particles=4),
    ELBO(num_particles=4, estimators={"k": ScoreFunction()}),
    ScoreFunctionELBO(num_particles=4),
    ScoreFunctionELBO(num_particles=1, baseline=None),
]


def gradients():
    parameters = dict(pyro.get_param_store().named_parameters())
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_all_three_losses_agree(objective):
    objective.loss(model, guide, DATA)  # finds out about the pair, and makes the parameters
    pyro.set_rng_seed(3)
    loss = objective.loss(model, guide, DATA)
    pyro.set_rng_seed(3)
    from_grads = objective.loss_and_grads(model, guide, DATA)
    by_loss_and_grads = gradients()
    pyro.set_rng_seed(3)
    differentiable = objective.differentiable_loss(model, guide, DATA)
    parameters = dict(pyro.get_param_store().named_parameters())
    found = torch.autograd.grad(differentiable, list(parameters.values()))
    assert loss == pytest.approx(from_grads) == pytest.approx(differentiable.item())
    for name, gradient in zip(parameters, found, strict=True):
        torch.testing.assert_close(gradient, by_loss_and_grads[name])


def test_the_loss_is_minus_the_bound():
    ours = np.mean([ELBO(50).loss(model, guide, DATA) for _ in range(20)])
    theirs = np.mean(
        [Trace_ELBO(50, vectorize_particles=True).loss(model, guide, DATA) for _ in range(20)]
    )
    assert ours == pytest.approx(theirs, abs=0.4)  # 1,000 draws each; about six standard errors


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_svi_takes_steps(objective):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=objective)
    losses = [svi.step(DATA) for _ in range(3)]
    assert all(isinstance(loss, float) and np.isfinite(loss) for loss in losses)
    assert pyro.param("loc").item() != pytest.approx(0.2)
    assert isinstance(svi.evaluate_loss(DATA), float)


def test_gradients_add_up_until_they_are_cleared():
    objective = ELBO(4)
    objective.loss(model, guide, DATA)
    pyro.set_rng_seed(0)
    objective.loss_and_grads(model, guide, DATA)
    once = gradients()
    pyro.set_rng_seed(0)
    objective.loss_and_grads(model, guide, DATA)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, 2 * once[name])


class Prior(PyroModule):
    def forward(self, data):
        return model(data)


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.2))

    def forward(self, data):
        pyro.sample("mu", dist.Normal(self.loc, 0.5))


def test_an_objective_makes_a_torch_module():
    module = ELBO(4)(Prior(), Guide())
    module(DATA)
    (parameter,) = module.parameters()
    module(DATA).backward()
    assert parameter.grad is not None


@pytest.mark.parametrize("objective", [*OBJECTIVES, ReparameterizedELBO(3)], ids=str)
def test_objectives_are_immutable_values(objective):
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.num_particles = 3
    assert pickle.loads(pickle.dumps(objective)) == copy.deepcopy(objective) == objective


@pytest.mark.parametrize("family", [ELBO, ReparameterizedELBO, ScoreFunctionELBO])
@pytest.mark.parametrize("count", [0, -1, 1.5, True, "4", None])
def test_num_particles_is_a_positive_integer(family, count):
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        family(num_particles=count)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ELBO(4, {"nowhere": Pathwise()}), "site 'nowhere'"),
        (ELBO(4, Pathwise()), "site 'k'"),
        (ELBO(1, ScoreFunction(LeaveOneOut())), "site 'mu'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_by_every_road(objective, message):
    for road in (objective.loss, objective.differentiable_loss, objective.loss_and_grads):
        with pytest.raises(GuideError, match=message):
            road(model, guide, DATA)


def test_one_objective_serves_many_models():
    objective = ELBO(4)
    before = dict(vars(objective))

    def other(data):
        pyro.sample("b", dist.Gamma(1.0, 1.0))

    def other_guide(data):
        pyro.sample("b", dist.Gamma(pyro.param("c", torch.tensor(2.0)), 1.0))

    first = [
        (objective.loss(model, guide, DATA), objective.loss(other, other_guide, DATA))
        for _ in range(2)
    ]
    pyro.set_rng_seed(0)
    alone = objective.loss(other, other_guide, DATA)
    pyro.set_rng_seed(0)
    assert ELBO(4).loss(other, other_guide, DATA) == alone
    assert vars(objective) == before
    assert len(first) == 2


def programs():
    def own_model(data):
        return model(data)

    def own_guide(data):
        return guide(data)

    return own_model, own_guide


class Owner:
    def model(self, data):
        return model(data)

    def guide(self, data):
        return guide(data)

    def narrow_guide(self, data):
        return mean_field(data)


def bound_methods():
    owner = Owner()
    return owner.model, owner.guide


def modules():
    return Prior(), Guide()


@pytest.mark.parametrize("made", [programs, bound_methods, modules])
def test_what_is_known_is_forgotten_with_the_model(made):
    gc.collect()
    known = set(memory._KNOWN)
    own_model, own_guide = made()
    ELBO(2).loss(own_model, own_guide, DATA)
    owner = weakref.ref(getattr(own_model, "__self__", own_model))
    assert set(memory._KNOWN) - known
    del own_model, own_guide
    gc.collect()
    assert owner() is None
    assert not set(memory._KNOWN) - known


def test_a_pair_is_inspected_once(monkeypatch):
    asked = []
    inspect = preparation.inspect
    monkeypatch.setattr(preparation, "inspect", lambda pair: asked.append(pair) or inspect(pair))
    owner = Owner()
    for _ in range(3):
        ELBO(2).loss_and_grads(owner.model, owner.guide, DATA)  # a new bound method each time
    assert len(asked) == 1
    ELBO(2).loss_and_grads(owner.model, owner.guide, DATA[:2])
    assert len(asked) == 2


def test_methods_of_one_object_are_told_apart():
    owner = Owner()
    ELBO(2).loss(owner.model, owner.guide, DATA)
    structure = preparation.structure_of(
        preparation.Pair(owner.model, owner.narrow_guide, (DATA,), {})
    )
    assert structure.marginalized == ("k",)


@pytest.mark.parametrize("of", [torch.as_tensor, np.asarray, list], ids=["tensor", "numpy", "list"])
def test_ragged_batches_run(of):
    objective = ELBO(4)
    for size in (3, 2, 3, 1):
        data = of(DATA[:size].tolist())
        assert np.isfinite(objective.loss_and_grads(model, guide, data))
        pair = preparation.Pair(model, guide, (data,), {})
        assert preparation.structure_of(pair).plates["data"].size == size


def test_a_program_without_gradients_still_has_a_loss():
    def fixed_guide(data):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    assert np.isfinite(ELBO(2).loss_and_grads(model, fixed_guide, DATA))


def test_everything_may_be_summed_out():
    def discrete(data):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=data)

    parts = torch.stack([dist.Normal(k, 1.0).log_prob(DATA).sum() for k in (0.0, 1.0)])
    evidence = (parts + torch.tensor([0.6, 0.4]).log()).logsumexp(0)
    assert ELBO(3).loss(discrete, lambda data: None, DATA) == pytest.approx(-evidence.item())
