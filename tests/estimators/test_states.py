"""What baselines and estimators keep: through ragged batches, apart for each fit, beside immutables."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from ppl_vi import (
    ELBO,
    ControlVariate,
    GuideError,
    MovingAverage,
    NeuralBaseline,
    Relax,
    ScoreFunction,
    fit,
)
from ppl_vi.program import Pair

X = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)) + 1.0
MODULE = torch.nn.Linear(3, 1)
LEARNING = {
    "moving average": ScoreFunction(MovingAverage()),
    "neural": ScoreFunction(NeuralBaseline(MODULE, rate=0.05)),
    "control variate": ScoreFunction(ControlVariate()),
    "relax": Relax(),
}


def model(x):
    weight = pyro.param("weight", torch.ones(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weight, 1.0).to_event(1), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x @ slope))


def fitted(estimator, particles, seed=0):
    objective = ELBO(particles, {"z": estimator})
    return fit(
        model, guide, X, batch_size=10, objective=objective, steps=40, seed=seed, progress=False
    )


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", LEARNING)
def test_what_is_learned_survives_ragged_batches_and_stays_with_the_fit(name, particles):
    module = copy.deepcopy(MODULE.state_dict())
    first, second = fitted(LEARNING[name], particles), fitted(LEARNING[name], particles)
    torch.testing.assert_close(first.losses, second.losses)  # nothing of the first is left
    learned = [state for state in first.states["z"] if state is not None]
    assert learned
    before = LEARNING[name].init, LEARNING[name].subtracted
    fresh = before[1].init(None) if name in ("moving average", "control variate") else None
    for state in learned:
        values = state.state_dict().values()
        assert all(torch.isfinite(v).all() for v in values if isinstance(v, torch.Tensor))
    if fresh is not None:
        assert first.states["z"].baseline.steps == 40
    for key, value in MODULE.state_dict().items():
        torch.testing.assert_close(value, module[key])  # each fit trains a copy


@pytest.mark.parametrize("name", LEARNING)
def test_svi_learns_too_and_a_loss_without_gradient_does_not(name):
    objective = ELBO(1, {"z": LEARNING[name]})
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    for size in (10, 10, 3):
        svi.step(X[:size])
    kept = objective.states(Pair(model, guide, (X[:10],), {}))["z"]
    before = [copy.deepcopy(s.state_dict()) for s in kept if s is not None]
    svi.evaluate_loss(X)
    with torch.no_grad():
        objective.loss(model, guide, X[:5])
    for state, old in zip([s for s in kept if s is not None], before, strict=True):
        for key, value in state.state_dict().items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, old[key])


def test_states_go_with_their_objective():
    """Another objective, even one in the same place of memory, starts anew."""
    pair = Pair(model, guide, (X,), {})
    for _ in range(5):
        objective = ELBO(1, {"z": ScoreFunction(MovingAverage())})
        assert objective.states(pair)["z"].baseline.steps == 0
        objective.loss_and_grads(model, guide, X)
        assert objective.states(pair)["z"].baseline.steps == 1


def test_a_moving_average_follows_the_log_weights():
    result = fitted(ScoreFunction(MovingAverage(0.9)), 4)
    averages = result.states["z"].baseline
    mean = averages.totals[0] / (1 - 0.9**averages.steps)
    assert -10 < mean < 0  # of one row, not of all 23


def test_a_network_learns_to_foretell():
    """The same rows in every step: what remains is the noise of the draws."""
    estimator = ScoreFunction(NeuralBaseline(torch.nn.Linear(3, 1), rate=0.05))
    objective = ELBO(4, {"z": estimator})
    errors = []
    for _ in range(300):
        objective.loss_and_grads(model, guide, X)
        learner = objective.states(Pair(model, guide, (X,), {}))["z"].baseline
        errors.append(learner.module(X).mean().item())
    # The log-weight of one row of the untrained pair, on average over rows and draws.
    assert errors[-1] == pytest.approx(-6.1, abs=0.6)


def test_a_network_of_the_wrong_shape_is_named():
    estimator = ScoreFunction(NeuralBaseline(torch.nn.Linear(3, 2)))
    with pytest.raises(GuideError, match="site 'z': NeuralBaseline gives shape"):
        ELBO(2, {"z": estimator}).loss_and_grads(model, guide, X)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
@pytest.mark.parametrize("baseline", [MovingAverage, ControlVariate])
def test_a_decay_lies_between_0_and_1(baseline, decay):
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        baseline(decay)
