"""q of discrete latents that are tied to each other, in explicit form.

Where all else is known, the best q is the posterior, and every draw from the guide has the same weight:
the evidence. So one equation tells whether tables, draws, masks and scales are right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import fit
from ppl_vi.guides import CAVIGuide
from ppl_vi.models import CategoricalHMM, GaussianHMM
from ppl_vi.program import Pair, draw_plainly, inspect, run

GENERATOR = torch.Generator().manual_seed(11)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR, dtype=torch.float64)


def rows(*shape: int) -> Tensor:
    """Rows of probabilities."""
    weights = 0.1 + uniform(*shape)
    return weights / weights.sum(-1, keepdim=True)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


INITIAL, STEP, TWO_STEPS, EMIT = rows(3), rows(3, 3), rows(3, 3, 3), rows(3, 4)
Y = torch.randint(4, (5, 6), generator=GENERATOR)
RUNNING = torch.arange(6) < torch.tensor([[6], [2], [1], [4], [3]])
TIMES = 0.5 + uniform(5)
BOTH, STEP_OF_TWO = rows(3, 2, 4), rows(2, 2)


def chain() -> None:
    z: Any = None
    with pyro.plate("sequences", 5):
        for t in pyro.markov(range(6)):
            z = pyro.sample(f"z_{t}", dist.Categorical(INITIAL if z is None else STEP[z]))
            pyro.sample(f"y_{t}", dist.Categorical(EMIT[z]), obs=Y[:, t])


def chain_of_second_order() -> None:
    before: Any = None
    last: Any = None
    for t in pyro.markov(range(6), history=2):
        first = INITIAL if last is None else STEP[last]
        own = first if before is None else TWO_STEPS[before, last]
        before, last = last, pyro.sample(f"z_{t}", dist.Categorical(own))
        pyro.sample(f"y_{t}", dist.Categorical(EMIT[last]), obs=Y[0, t])


def switching() -> None:
    """What is observed depends on two steps of the chain."""
    z: Any = torch.tensor(0)
    for t in pyro.markov(range(6)):
        before, z = z, pyro.sample(f"z_{t}", dist.Bernoulli(torch.tensor([0.3, 0.8])[z.long()]))
        own = dist.Normal(3.0 * before - z, 1.0)
        pyro.sample(f"y_{t}", own, obs=Y[0, t].double())


def one_hot_chain() -> None:
    z: Any = None
    with pyro.plate("sequences", 5):
        for t in pyro.markov(range(4)):
            own = INITIAL if z is None else z @ STEP
            z = pyro.sample(f"z_{t}", dist.OneHotCategorical(own))
            pyro.sample(f"y_{t}", dist.Categorical(z @ EMIT), obs=Y[:, t])


def masked_chain() -> None:
    z: Any = None
    with pyro.plate("sequences", 5):
        for t in pyro.markov(range(6)):
            with pyro.poutine.mask(mask=RUNNING[:, t]):
                z = pyro.sample(f"z_{t}", dist.Categorical(INITIAL if z is None else STEP[z]))
                pyro.sample(f"y_{t}", dist.Categorical(EMIT[z]), obs=Y[:, t])


def missing_observations() -> None:
    z: Any = None
    with pyro.plate("sequences", 5):
        for t in pyro.markov(range(6)):
            z = pyro.sample(f"z_{t}", dist.Categorical(INITIAL if z is None else STEP[z]))
            pyro.sample(f"y_{t}", dist.Categorical(EMIT[z]).mask(RUNNING[:, t]), obs=Y[:, t])


def scaled_chain() -> None:
    with pyro.poutine.scale(scale=TIMES):
        chain()


def masked_mixture() -> None:
    with pyro.plate("rows", 5), pyro.poutine.mask(mask=RUNNING[:, 2]):
        z = pyro.sample("z", dist.Categorical(INITIAL))
        pyro.sample("y", dist.Categorical(EMIT[z]), obs=Y[:, 0])


def tree_of_plates() -> None:
    top = pyro.sample("top", dist.Categorical(INITIAL))
    with pyro.plate("documents", 5, dim=-2):
        kind = pyro.sample("kind", dist.Categorical(STEP[top]))
        with pyro.plate("words", 6, dim=-1):
            z = pyro.sample("z", dist.Categorical(TWO_STEPS[top, kind]))
            pyro.sample("y", dist.Categorical(EMIT[z]), obs=Y)
        other = pyro.sample("other", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])[kind]))
        pyro.sample("x", dist.Normal(other, 1.0), obs=Y[:, :1].double())


def two_that_meet() -> None:
    """One observation of two latents: the second depends on the first in q, but not in the prior."""
    with pyro.plate("rows", 5):
        one = pyro.sample("one", dist.Categorical(INITIAL))
        two = pyro.sample("two", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Categorical(BOTH[one, two.long()]), obs=Y[:, 0])


def child_of_two() -> None:
    """The parents are independent in the prior, and tied by what is observed of their child."""
    with pyro.plate("rows", 5):
        one = pyro.sample("one", dist.Categorical(INITIAL))
        two = pyro.sample("two", dist.Categorical(INITIAL))
        child = pyro.sample("child", dist.Categorical(TWO_STEPS[one, two]))
        pyro.sample("y", dist.Categorical(EMIT[child]), obs=Y[:, 0])


def two_that_meet_often() -> None:
    """The weights are those of each observation, not of each row."""
    with pyro.plate("rows", 5, dim=-2):
        one = pyro.sample("one", dist.Categorical(INITIAL))
        two = pyro.sample("two", dist.Bernoulli(0.3))
        with pyro.plate("repeats", 6, dim=-1):
            pyro.sample("y", dist.Categorical(BOTH[one, two.long()]), obs=Y)


def two_that_meet_where_observed() -> None:
    with pyro.plate("rows", 5):
        one = pyro.sample("one", dist.Categorical(INITIAL))
        two = pyro.sample("two", dist.Bernoulli(0.3))
        with pyro.poutine.mask(mask=RUNNING[:, 2]):
            pyro.sample("y", dist.Categorical(BOTH[one, two.long()]), obs=Y[:, 0])


def chains_that_meet() -> None:
    one: Any = torch.tensor(0)
    two: Any = torch.tensor(0)
    for t in pyro.markov(range(3)):
        one = pyro.sample(f"one_{t}", dist.Categorical(STEP[one]))
        two = pyro.sample(f"two_{t}", dist.Categorical(STEP_OF_TWO[two]))
        pyro.sample(f"y_{t}", dist.Categorical(BOTH[one, two]), obs=Y[0, t])


def later_and_wider() -> None:
    """A latent of all rows that follows those of each: they depend on it, not it on them."""
    each = pyro.plate("rows", 3)
    with each:
        z = pyro.sample("z", dist.Categorical(INITIAL))
    whole = pyro.sample("whole", dist.Categorical(torch.tensor([0.4, 0.6])))
    with each:
        pyro.sample("y", dist.Categorical(BOTH[z, whole]), obs=Y[:3, 0])


WITH_TABLES = [
    chain,
    chain_of_second_order,
    switching,
    one_hot_chain,
    masked_chain,
    missing_observations,
    scaled_chain,
    masked_mixture,
    tree_of_plates,
    two_that_meet,
    child_of_two,
]
WITHOUT = [
    two_that_meet_often,
    two_that_meet_where_observed,
    chains_that_meet,
    later_and_wider,
]


def begun(model: Any, *args: Any) -> CAVIGuide:
    torch.manual_seed(0)
    guide = CAVIGuide(model)
    guide.begin(args, {}, {})
    return guide


def known(model: Any) -> Any:
    """The model, beside a latent that coordinate ascent infers exactly."""

    def program() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x_of_m", dist.Normal(m, 1.0), obs=torch.tensor(2.0))
        model()

    return program


@pytest.mark.parametrize("model", WITH_TABLES + WITHOUT)
def test_every_draw_weighs_as_much_as_the_evidence(model: Any) -> None:
    program = known(model)
    guide = begun(program)
    bound = guide.sweep()
    guide.settle()
    pair = Pair(program, guide, (), {})
    structure = inspect(pair)
    # Torch looks at one-hot values as it draws them.
    assert structure.guide_particles == ("loop" if model is one_hot_chain else "plate")
    with torch.no_grad():
        found = run(structure, pair, draw_plainly, 40).log_weights()
    torch.testing.assert_close(found, torch.full((40,), bound), rtol=1e-11, atol=1e-10)
    explicit = set(guide.factors()) - {"m"}
    assert bool(explicit) == (model in WITH_TABLES)
    drawn = set(guide()) - {"m"}
    assert drawn == explicit


def posterior_of_chain(y: Tensor) -> tuple[Tensor, Tensor]:
    """All paths ``[paths, T]``, and the probability of each."""
    paths = torch.tensor(list(itertools.product(range(3), repeat=len(y))))
    log_p = INITIAL[paths[:, 0]].log() + EMIT[paths, y].log().sum(-1)
    log_p = log_p + STEP[paths[:, :-1], paths[:, 1:]].log().sum(-1)
    return paths, log_p.softmax(0)


def test_factors_are_marginals() -> None:
    guide = begun(known(chain))
    guide.sweep()
    guide.settle()
    factors = guide.factors()
    for s, y in enumerate(Y):
        paths, shares = posterior_of_chain(y)
        for t in range(6):
            expected = torch.zeros(3).index_add(0, paths[:, t], shares)
            found = factors[f"z_{t}"].probs[s]
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_draws_are_of_the_joint_posterior() -> None:
    """Pairs of neighbours, not steps by themselves: one false alarm in 16,000 for each of 45 shares."""
    guide = begun(known(chain))
    guide.sweep()
    guide.settle()
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("particles", 20_000, dim=-2):
        drawn = guide()
    assert drawn["z_1"].shape == (20_000, 5)
    paths, shares = posterior_of_chain(Y[0])
    for t in range(1, 6):
        expected = torch.zeros(9).index_add(0, 3 * paths[:, t - 1] + paths[:, t], shares)
        own = 3 * drawn[f"z_{t - 1}"][:, 0] + drawn[f"z_{t}"][:, 0]
        found = torch.bincount(own, minlength=9) / 20_000
        error = (expected * (1 - expected) / 20_000).sqrt()
        assert ((found - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("made", [GaussianHMM(3), CategoricalHMM(3, 4)])
def test_a_fitted_chain_is_an_ordinary_result(made: Any) -> None:
    """Its ELBO within 4 standard errors of the bound: one false alarm in 16,000 for each."""
    lengths = RUNNING.sum(-1)
    y = Y if isinstance(made, CategoricalHMM) else 2.0 * Y[..., None] + uniform(5, 6, 1)
    result = fit(made, "cavi", (y, lengths), seed=0, progress=False)
    assert result.elbo.standard_error > 0
    assert abs(result.elbo - result.bound) < 4 * result.elbo.standard_error
    draws = result.sample(30)
    assert draws["z_0"].shape == draws["z_5"].shape == (30, 5)
    assert result.predict(num_samples=3)["y_2"].shape == (3, *y[:, 2].shape)
    assert result.predict(y[:2], lengths[:2], num_samples=3)["y_2"].shape == (3, *y[:2, 2].shape)
    arviz = result.to_arviz(4)
    assert arviz.posterior["z_3"].shape[1:] == (4, 5)


def test_what_is_left_out_is_summed_out_again() -> None:
    def model() -> None:
        with pyro.plate("kinds", 3):
            emission = pyro.sample("emission", dist.Dirichlet(torch.ones(2, 4)).to_event(1))
        one: Any = torch.tensor(0)
        two: Any = torch.tensor(0)
        for t in pyro.markov(range(4)):
            one = pyro.sample(f"one_{t}", dist.Categorical(STEP[one]))
            two = pyro.sample(f"two_{t}", dist.Categorical(STEP_OF_TWO[two]))
            pyro.sample(f"y_{t}", dist.Categorical(emission[one, two]), obs=Y[0, t])

    result = fit(model, "cavi", steps=5, seed=0, progress=False)
    assert set(result.guide.factors()) == {"emission"}
    assert result.elbo > result.bound  # which has a factor for the chains
    assert result.sample(3)["two_3"].shape == (3,)


def test_tables_of_batches() -> None:
    """Chains in the rows of minibatches: within 4 standard errors, one false alarm in 16,000."""
    y, lengths = Y.repeat(3, 1), RUNNING.sum(-1).repeat(3)
    model = CategoricalHMM(3, 4)
    settings: Any = {"batch_size": 4, "steps": 8, "seed": 0, "progress": False}
    result = fit(model, "cavi", (y, lengths), **settings)
    assert result.elbo.standard_error > 0
    assert abs(result.elbo - result.bound) < 4 * result.elbo.standard_error
    assert result.sample(5)["z_5"].shape == (5, 15)
