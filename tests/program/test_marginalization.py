"""Discrete latents that the guide leaves out are summed out exactly, however the particles run."""

import itertools
from dataclasses import replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vi import ModelError
from ppl_vi.program import Pair, draw_latents, draw_plainly, inspect, run

DATA = torch.tensor([-1.0, 0.2, 2.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mu_guide(*args):
    pyro.sample("mu", dist.Normal(0.2, 0.5))


def mixture():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(mu + k, 1.0), obs=DATA)


def global_discrete():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.3))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(mu + k, 1.0), obs=DATA)


def two_causes():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(mu)))
        b = pyro.sample("b", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(mu + 2.0 * a * b - b, 1.0), obs=DATA)


def chain():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(mu)))
    with pyro.plate("data", 3):
        logits = torch.stack([a, 1.0 - 2.0 * a, 0.3 + a], -1)
        b = pyro.sample("b", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Normal(mu + b, 1.0), obs=DATA)


def above_a_draw():
    k = pyro.sample("k", dist.Bernoulli(0.3))
    mu = pyro.sample("mu", dist.Normal(2.0 * k, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=DATA)


def single_value():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.ones(1)))
        pyro.sample("x", dist.Normal(mu + k, 1.0), obs=DATA)


def nested():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        with pyro.plate("inner", 2, dim=-1):
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
            data = torch.arange(4.0).reshape(2, 2) / 3
            pyro.sample("x", dist.Normal(mu + a - b, 1.0), obs=data)


def masked():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(mu + k, 1.0), obs=DATA)


def one_hot():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(mu + k @ torch.arange(3.0), 1.0), obs=DATA)


def indexed():
    """A mixture that indexes from the left, so that its particles can't run in a plate."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    means = torch.stack([mu, mu + 1.0, mu - 2.0])
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(means[k], 1.0), obs=DATA)


TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)


def markov(length=3):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    state = 0
    for t in pyro.markov(range(length)):
        state = pyro.sample(f"state_{t}", dist.Categorical(TRANSITION[state]))
        pyro.sample(f"x_{t}", dist.Normal(mu + state, 1.0), obs=DATA[t % 3])


def two_chains():
    """Two hidden Markov models in a plate, of unequal lengths."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("chains", 2):
        state = 0
        for t in pyro.markov(range(2)):
            with poutine.mask(mask=torch.tensor([True, t < 1])):
                state = pyro.sample(f"state_{t}", dist.Categorical(TRANSITION[state]))
                pyro.sample(f"x_{t}", dist.Normal(mu + state, 1.0), obs=DATA[t : t + 2])


def second_order():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    before, state = 0.0, 0.0
    for t in pyro.markov(range(3), history=2):
        drawn = pyro.sample(f"state_{t}", dist.Bernoulli(0.2 + 0.3 * before + 0.4 * state))
        pyro.sample(f"x_{t}", dist.Normal(mu + drawn, 1.0), obs=DATA[t])
        before, state = state, drawn


MODELS = [
    mixture,
    global_discrete,
    two_causes,
    chain,
    above_a_draw,
    single_value,
    nested,
    masked,
    one_hot,
    indexed,
    markov,
    two_chains,
    second_order,
]


@cache
def by_brute_force(model, mu):
    """Every joint state of the discrete sites, ``by name``, and log p(x, state, mu) of each."""
    trace = poutine.trace(poutine.condition(model, {"mu": torch.tensor(mu)})).get_trace()
    discrete = [n for n in trace.stochastic_nodes if trace.nodes[n]["fn"].has_enumerate_support]
    values = []
    for name in discrete:
        site = trace.nodes[name]
        support = site["fn"].enumerate_support(expand=False)
        support = support.reshape(len(support), *site["fn"].event_shape)
        per_element = itertools.product(support, repeat=site["fn"].batch_shape.numel())
        values.append([torch.stack(one).reshape(site["value"].shape) for one in per_element])
    states, log_probs = [], []
    for combination in itertools.product(*values):
        state = dict(zip(discrete, combination, strict=True))
        fixed = poutine.condition(model, {"mu": torch.tensor(mu), **state})
        total = torch.zeros(())
        for name, site in poutine.trace(fixed).get_trace().nodes.items():
            if site["type"] == "sample":
                log_prob = site["fn"].log_prob(site["value"])
                # A masked latent is summed out by its prior; only what is observed is masked.
                masked_out = site["mask"] is not None and name not in discrete
                total = total + (log_prob * site["mask"] if masked_out else log_prob).sum()
        states.append(state)
        log_probs.append(total)
    return states, torch.stack(log_probs)


@pytest.mark.parametrize("particles", ["chosen", "vmap", "loop"])
@pytest.mark.parametrize("model", MODELS)
def test_the_sum_over_states_is_exact(model, particles):
    pair = Pair(model, mu_guide, (), {})
    structure = inspect(pair)
    if particles != "chosen":
        structure = replace(structure, model_particles=particles)
    made = run(structure, pair, draw_plainly, 2)
    mu = made.latents["mu"].value
    expected = [by_brute_force(model, m.item())[1].logsumexp(0) for m in mu]
    expected = torch.stack(expected) - dist.Normal(0.2, 0.5).log_prob(mu)
    torch.testing.assert_close(made.log_weights(), expected, rtol=1e-12, atol=1e-10)


def test_only_models_that_index_from_the_left_leave_the_plate():
    chosen = {m.__name__: inspect(Pair(m, mu_guide, (), {})).model_particles for m in MODELS}
    assert chosen.pop("indexed") == "vmap"
    assert set(chosen.values()) == {"plate"}


def test_a_long_hidden_markov_model_equals_the_forward_algorithm():
    pair = Pair(markov, mu_guide, (60,), {})
    made = run(inspect(pair), pair, draw_plainly, 3)
    for mu, log_w in zip(made.latents["mu"].value, made.log_weights(), strict=True):
        log_alpha = torch.tensor([0.0, -torch.inf, -torch.inf])
        for t in range(60):
            arriving = (log_alpha.unsqueeze(-1) + TRANSITION.log()).logsumexp(0)
            log_alpha = arriving + dist.Normal(mu + torch.arange(3.0), 1.0).log_prob(DATA[t % 3])
        prior = dist.Normal(0.0, 1.0).log_prob(mu) - dist.Normal(0.2, 0.5).log_prob(mu)
        torch.testing.assert_close(log_w, log_alpha.logsumexp(0) + prior)


def test_a_gradient_passes_through_the_sum():
    pair = Pair(mixture, mu_guide, (), {})
    mu = torch.tensor([0.4, -0.3], requires_grad=True)
    made = run(inspect(pair), pair, lambda name, distribution: mu.unsqueeze(-1), 2)
    (gradient,) = torch.autograd.grad(made.log_weights().sum(), mu)
    weights = torch.tensor([0.2, 0.5, 0.3]).log()
    means = mu.unsqueeze(-1) + torch.arange(3.0)
    parts = dist.Normal(means, 1.0).log_prob(DATA.reshape(3, 1, 1)) + weights
    prior = dist.Normal(0.0, 1.0).log_prob(mu) - dist.Normal(0.2, 0.5).log_prob(mu)
    total = parts.logsumexp(-1).sum() + prior.sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(total, mu)[0])


@pytest.mark.parametrize("scale", [3.0, torch.tensor(3.0), torch.arange(1.0, 4.0)], ids=str)
def test_a_shared_scale_stands_outside_the_sum(scale):
    def scaled():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.scale(scale=scale):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(mu + k, 1.0), obs=DATA)

    pair = Pair(scaled, mu_guide, (), {})
    for particles in ("plate", "vmap", "loop"):
        structure = replace(inspect(pair), model_particles=particles)
        made = run(structure, pair, draw_plainly, 5)
        (factor,) = [f for f in made.factors if "x" in f.sites]
        mu = made.latents["mu"].value.unsqueeze(-1)
        off, on = (dist.Normal(mu + k, 1.0).log_prob(DATA) for k in (0.0, 1.0))
        expected = (0.7 * off.exp() + 0.3 * on.exp()).log() * scale
        torch.testing.assert_close(factor.signed, expected.expand(5, 3))


def subsampled_inside():
    k = pyro.sample("k", dist.Bernoulli(0.3))
    with pyro.plate("data", 3, subsample=torch.arange(2)):
        pyro.sample("x", dist.Normal(k, 1.0), obs=DATA[:2])


def scaled_along_a_contracted_plate():
    with poutine.scale(scale=torch.arange(1.0, 4.0)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(k, 1.0), obs=DATA)


def scaled_tensor_and_number():
    k = pyro.sample("k", dist.Bernoulli(0.3))
    with pyro.plate("data", 3), poutine.scale(scale=torch.tensor(2.0, dtype=torch.float32)):
        pyro.sample("x", dist.Normal(k, 1.0), obs=DATA)


@pytest.mark.parametrize(
    "model", [subsampled_inside, scaled_along_a_contracted_plate, scaled_tensor_and_number]
)
def test_different_scales_are_refused(model):
    pair = Pair(model, lambda: None, (), {})
    with pytest.raises(
        ModelError, match=r"sites 'k', 'x' .* different scales.*draw it in the guide"
    ):
        inspect(pair)


def test_crossing_plates_are_refused():
    def crossing():
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Bernoulli(0.3))
        with columns:
            b = pyro.sample("b", dist.Bernoulli(0.3))
        with rows, columns:
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.zeros(3, 2))

    with pytest.raises(ModelError, match="sites 'a', 'b', 'x'"):
        inspect(Pair(crossing, lambda: None, (), {}))


DRAWN = [
    mixture,
    two_causes,
    chain,
    above_a_draw,
    nested,
    masked,
    one_hot,
    indexed,
    markov,
    two_chains,
]
NUM_DRAWS = 20_000


@pytest.mark.parametrize("model", [*DRAWN, second_order, single_value])
def test_draws_given_the_data_have_their_exact_probabilities(model):
    """Joint states by a chi-square with at most 60 cells; alarms falsely once in 100,000 (12 tests)."""
    pyro.set_rng_seed(1)
    mu = torch.tensor(0.3)
    pair = Pair(model, lambda: pyro.sample("mu", dist.Delta(mu)), (), {})
    structure = inspect(pair)
    draws = draw_latents(structure, pair, NUM_DRAWS)
    states, log_probs = by_brute_force(model, mu.item())
    expected = log_probs.softmax(0) * NUM_DRAWS
    codes = torch.stack([code(state, structure.marginalized, ()) for state in states])
    drawn = code(draws, structure.marginalized, (NUM_DRAWS,))
    position = {value: i for i, value in enumerate(codes.tolist())}
    counts = torch.zeros(len(states)).index_add(
        0, torch.tensor([position[value] for value in drawn.tolist()]), torch.ones(NUM_DRAWS)
    )
    order = expected.argsort(descending=True)
    kept = order[:60][expected[order[:60]] > 10.0]
    rest = torch.ones(len(states), dtype=torch.bool)
    rest[kept] = False
    cells = [(counts[kept], expected[kept])]
    if expected[rest].sum() > 10.0:
        cells.append((counts[rest].sum().reshape(1), expected[rest].sum().reshape(1)))
    found, wanted = (torch.cat(column) for column in zip(*cells, strict=True))
    chi_square = ((found - wanted).square() / wanted).sum()
    freedom = max(len(wanted) - 1, 1)
    # Wilson and Hilferty: the cube root is close to Normal.
    deviate = ((chi_square / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / (
        2 / (9 * freedom)
    ) ** 0.5
    assert deviate < 4.5


def code(values, names, leading):
    """One number for a joint state."""
    flat = torch.cat([values[n].reshape(*leading, -1).double() for n in names], -1)
    return flat @ (4.0 ** torch.arange(flat.shape[-1]))
