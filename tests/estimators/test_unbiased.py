"""Estimators are tested as estimators: their mean against the exact gradient, and their variance.

The exact bound is a sum over every draw of the guide: discrete sites by their support, Normal sites
by Gauss-Hermite nodes that carry the gradient. 75 cases make 448 comparisons, each with a false alarm
in 53,000 by Student's t, so that about one set of seeds in 120 alarms; each case has a seed of its own.

Time goes into the number of gradients, not of particles: there are few gradients of many. The
particles make up for Student's longer tails: a bias that does not shrink with them shows as it
does in 100 gradients of 64 at 4.5 standard errors.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

from ppl_vi import (
    ELBO,
    ControlVariate,
    DisARM,
    Enumerate,
    ImportanceSampled,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Pathwise,
    Relax,
    ScoreFunction,
)
from ppl_vi.drawing import draw_with
from ppl_vi.preparation import prepare
from ppl_vi.program import Dependencies, Pair
from ppl_vi.surrogate import surrogate

FALSE_ALARM = 1.9e-5  # of one comparison: 4.5 standard errors of 100 gradients
ROUNDING = 4.5e-9  # errors that are no estimator's
CALLS, OF_LEARNING = (25, 360), (50, 144)  # gradients, and particles of each
LEARNING = ("relax", "moving average", "control variate")
ONE_BY_ONE = (100, 64)  # where the particles take the time
DATA = torch.tensor([-0.6, 1.4, 0.5, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny steps: more threads would wait for each other
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)


def logit(name, value):
    return pyro.param(name, torch.tensor(value, dtype=torch.float64))


def bernoulli():
    z = pyro.sample("z", dist.Bernoulli(logits=logit("prior", -0.3)))
    pyro.sample("x", dist.Normal(logit("slope", 1.1) * z, 1.0), obs=DATA[1])


def bernoulli_guide():
    pyro.sample("z", dist.Bernoulli(logits=logit("a", 0.4)))


def categorical():
    means = logit("means", [-1.0, 0.5, 1.0])
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(logits=torch.tensor([0.2, 0.0, -0.5])))
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=DATA[:3])


def categorical_guide():
    with pyro.plate("data", 3):
        start = [[0.1, 0.0, 0.3], [0.5, -0.2, 0.0], [0.0, 0.0, 0.7]]
        pyro.sample("z", dist.Categorical(logits=logit("a", start)))


def normal():
    w = pyro.sample("w", dist.Normal(logit("prior", 0.2), 1.0))
    pyro.sample("x", dist.Normal(w + 0.3 * w.square(), 1.0), obs=DATA[1])


def normal_guide():
    scale = pyro.param("s", torch.tensor(0.6), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(logit("m", 0.4), scale))


def discrete_then_continuous():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    w = pyro.sample("w", dist.Normal(z, 1.0))
    pyro.sample("x", dist.Normal(logit("slope", 1.2) * w, 1.0), obs=DATA[1])


def discrete_then_continuous_guide():
    z = pyro.sample("z", dist.Bernoulli(logits=logit("a", 0.4)))
    loc = logit("off", -0.2) * (1.0 - z) + logit("on", 0.9) * z
    pyro.sample("w", dist.Normal(loc, 0.5 + 0.2 * z))


def continuous_then_discrete():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(logits=w))
    pyro.sample("x", dist.Normal(logit("slope", 1.2) * z + w, 1.0), obs=DATA[1])


def continuous_then_discrete_guide():
    w = pyro.sample("w", dist.Normal(logit("m", 0.4), logit("s", -0.5).exp()))
    pyro.sample("z", dist.Bernoulli(logits=logit("c", 0.8) * w + logit("d", -0.1)))


def outside_and_inside():
    g = pyro.sample("g", dist.Bernoulli(0.4))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * g))
        pyro.sample("x", dist.Normal(logit("slope", 1.2) * z - g, 1.0), obs=DATA[:3])


def outside_and_inside_guide():
    g = pyro.sample("g", dist.Bernoulli(logits=logit("a", -0.4)))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(logits=logit("b", [0.1, 0.5, -0.4]) + logit("c", 0.6) * g))


def nested():
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(0.4))
        with pyro.plate("inner", 2, dim=-1):
            b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * a))
            pyro.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=DATA.reshape(2, 2))


def nested_guide():
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(logits=logit("p", [[0.3], [-0.2]])))
        with pyro.plate("inner", 2, dim=-1):
            pyro.sample("b", dist.Bernoulli(logits=logit("q", [[0.1, 0.2], [0.0, -0.6]]) + a))


def subsampled(rows=2):
    g = pyro.sample("g", dist.Bernoulli(0.4))
    with pyro.plate("data", 4, subsample_size=rows) as chosen:
        z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * g))
        pyro.sample("x", dist.Normal(logit("slope", 1.2) * z - g, 1.0), obs=DATA[chosen])


def subsampled_guide(rows=2):
    g = pyro.sample("g", dist.Bernoulli(logits=logit("a", -0.4)))
    with pyro.plate("data", 4, subsample_size=rows) as chosen:
        b = logit("b", [0.1, 0.5, -0.4, 0.2])[chosen]
        pyro.sample("z", dist.Bernoulli(logits=b + 0.5 * g))


def mixing(mean_of):
    """A model that mixes the elements of its plate."""

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(logit("slope", 1.2) * mean_of(z), 1.0), obs=DATA[:3])

    return model


def plate_guide():
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(logits=logit("b", [0.1, 0.5, -0.4])))


def handled():
    with poutine.scale(scale=1.7):
        g = pyro.sample("g", dist.Bernoulli(0.4))
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * g))
        pyro.sample("x", dist.Normal(z - g, 1.0), obs=DATA[:3])
    with poutine.mask(mask=g > 0):
        pyro.sample("y", dist.Normal(logit("slope", 1.2), 1.0), obs=DATA[1])


def handled_guide():
    with poutine.scale(scale=1.7):
        g = pyro.sample("g", dist.Bernoulli(logits=logit("a", -0.4)))
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.sample("z", dist.Bernoulli(logits=logit("b", [0.1, 0.5, -0.4]) + 0.5 * g))


def untraceable():
    a = pyro.sample("a", dist.Bernoulli(0.4))
    b = pyro.sample("b", dist.Bernoulli(0.4))
    mean = torch.zeros(2)
    mean[0] = 1.3 * a
    mean[1] = float(b.tolist())
    pyro.sample("x", dist.Normal(mean.sum(), 1.0), obs=DATA[1])


def untraceable_guide():
    a = pyro.sample("a", dist.Bernoulli(logits=logit("p", -0.4)))
    pyro.sample("b", dist.Bernoulli(logits=logit("q", 0.3) + 0.5 * a))


def summed_out(exact=False):
    """``k`` is summed out by the engine, and by hand in the exact bound."""
    g = pyro.sample("g", dist.Bernoulli(0.4))
    weights = torch.stack([0.3 + 0.4 * g, 0.7 - 0.4 * g], -1)
    with pyro.plate("data", 3):
        if exact:
            parts = dist.Normal(torch.tensor([0.0, 1.5]), 1.0)
            x = dist.MixtureSameFamily(dist.Categorical(weights), parts)
        else:
            k = pyro.sample("k", dist.Categorical(weights))
            x = dist.Normal(1.5 * k, 1.0)
        pyro.sample("x", x, obs=DATA[:3])


def summed_out_guide(exact=False):
    pyro.sample("g", dist.Bernoulli(logits=logit("a", -0.4)))


def wider(q):
    """A proposal with more spread than q."""
    if isinstance(q, dist.Normal):
        return dist.Normal(q.loc, 1.4 * q.scale)
    return dist.Bernoulli(logits=0.6 * q.logits)


NAIVE, LOO = ScoreFunction(), ScoreFunction(LeaveOneOut())
CASES = {
    "bernoulli": (bernoulli, bernoulli_guide, {}),
    "categorical": (categorical, categorical_guide, {}),
    "normal": (normal, normal_guide, {}),
    "discrete, then continuous": (discrete_then_continuous, discrete_then_continuous_guide, {}),
    "continuous, then discrete": (continuous_then_discrete, continuous_then_discrete_guide, {}),
    "outside and inside": (outside_and_inside, outside_and_inside_guide, {}),
    "nested": (nested, nested_guide, {}),
    "subsampled": (subsampled, subsampled_guide, {"rows": 4}),
    "cumulative sum": (mixing(lambda z: z.cumsum(-1)), plate_guide, {}),
    "neighbour": (mixing(lambda z: z.roll(1, -1)), plate_guide, {}),
    "centred": (mixing(lambda z: z - z.mean(-1, keepdim=True)), plate_guide, {}),
    "scale and mask": (handled, handled_guide, {}),
    "untraceable": (untraceable, untraceable_guide, {}),
    "summed out": (summed_out, summed_out_guide, {"exact": True}),
}
ESTIMATORS = [(case, "leave one out") for case in CASES]
ESTIMATORS += [
    (case, "score") for case in ("bernoulli", "normal", "subsampled", "neighbour", "nested")
]
ESTIMATORS += [("normal", "pathwise")]
ESTIMATORS += [
    (f"{first}, then {then}", "auto")
    for first, then in (("discrete", "continuous"), ("continuous", "discrete"))
]
ESTIMATORS += [
    (case, chosen)
    for case in ("discrete, then continuous", "outside and inside", "nested", "subsampled")
    for chosen in ("auto", "measure", "disarm", "relax", "importance", "control variate")
]
ESTIMATORS += [
    ("continuous, then discrete", chosen)
    for chosen in ("measure", "disarm", "importance", "sticking")
]
ESTIMATORS += [
    ("discrete, then continuous", "sticking"),
    ("outside and inside", "mixed"),
    ("outside and inside", "mixed the other way"),
    ("summed out", "measure"),
    ("categorical", "disarm"),
    ("scale and mask", "auto"),
    ("scale and mask", "disarm"),
    ("untraceable", "disarm"),
]
ESTIMATORS += [
    (case, f"weighted {chosen}")
    for case in ("discrete, then continuous", "continuous, then discrete", "outside and inside")
    for chosen in ("leave one out", "score", "measure", "moving average", "control variate")
]
ESTIMATORS += [("continuous, then discrete", "weighted auto"), ("summed out", "weighted auto")]
NAMED = {
    "measure": MeasureValued(),
    "disarm": dict.fromkeys("zgab", DisARM()),
    "relax": dict.fromkeys("zgab", Relax(rate=2e-3)),
    "importance": ImportanceSampled(wider),
    "sticking": {"w": Pathwise(stick_the_landing=True)},
    "moving average": ScoreFunction(MovingAverage()),
    "control variate": ScoreFunction(ControlVariate()),
    "mixed": {"g": Enumerate(), "z": DisARM()},
    "mixed the other way": {"g": MeasureValued(), "z": Enumerate()},
    "score": NAIVE,
    "leave one out": LOO,
    "pathwise": Pathwise(),
    "auto": "auto",
}


def branches(distribution):
    """Every value of a site and its log-weight; for a Normal, nodes that carry the gradient."""
    shape, count = distribution.batch_shape, distribution.batch_shape.numel()
    if isinstance(distribution, dist.Normal):
        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        log_weights = torch.as_tensor(weights / weights.sum()).log()
        for one in itertools.product(range(24), repeat=count):
            standard = torch.as_tensor(nodes)[list(one)].reshape(shape)
            value = distribution.loc + distribution.scale * standard
            yield value, log_weights[list(one)].sum()
    else:
        support = distribution.enumerate_support(expand=False).reshape(-1)
        for one in itertools.product(support, repeat=count):
            value = torch.stack(one).reshape(shape)
            yield value, distribution.log_prob(value).sum()


def all_draws(model, guide, keywords, fixed=None, log_weight=0.0):
    """The log-probability and the log-weight of everything that the guide may draw."""
    fixed = fixed or {}
    trace = poutine.trace(poutine.condition(guide, fixed)).get_trace(**keywords)
    undrawn = (n for n in trace.stochastic_nodes if n not in (*fixed, "data", "outer", "inner"))
    open_sites = list(undrawn)
    if open_sites:
        name = open_sites[0]
        for value, extra in branches(trace.nodes[name]["fn"]):
            yield from all_draws(model, guide, keywords, {**fixed, name: value}, log_weight + extra)
        return
    model_trace = poutine.trace(poutine.condition(model, fixed)).get_trace(**keywords)
    yield log_weight, model_trace.log_prob_sum() - trace.log_prob_sum()


def exact_bound(objective, model, guide, keywords):
    """The ELBO or, from all pairs of draws, the importance-weighted bound with K = 2."""
    log_q, log_w = map(torch.stack, zip(*all_draws(model, guide, keywords), strict=True))
    if isinstance(objective, ELBO):
        return (log_q.exp() * log_w).sum()
    pairs = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
    return ((log_q[:, None] + log_q).exp() * pairs).sum()


def parameters():
    return [parameter for _, parameter in pyro.get_param_store().named_parameters()]


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def sampled(objective, model, guide, calls):
    """``[calls, parameters]`` gradients and ``[calls]`` bounds."""
    gradients, bounds = [], []
    for _ in range(calls):
        for parameter in parameters():
            parameter.grad = None
        bounds.append(-objective.loss_and_grads(model, guide))
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters()]
        gradients.append(-flat(grads))
    return torch.stack(gradients), torch.tensor(bounds)


@pytest.mark.parametrize(("case", "chosen"), ESTIMATORS)
def test_the_mean_gradient_and_bound_are_exact(case, chosen, deviates):
    pyro.set_rng_seed(1_000 + ESTIMATORS.index((case, chosen)))
    model, guide, keywords = CASES[case]
    wanted = NAMED[chosen.removeprefix("weighted ")]
    if isinstance(wanted, dict):
        sites = poutine.trace(guide).get_trace(**keywords).stochastic_nodes
        wanted = {name: estimator for name, estimator in wanted.items() if name in sites}
    calls, particles = OF_LEARNING if chosen.endswith(LEARNING) else CALLS
    if case == "untraceable":
        calls, particles = ONE_BY_ONE
    if chosen.startswith("weighted"):
        objective = ImportanceWeightedELBO(2, particles // 2, wanted)
    else:
        objective = ELBO(particles, wanted)
    exact = exact_bound(objective, model, guide, keywords)
    exact_gradient = flat(torch.autograd.grad(exact, parameters()))
    gradients, bounds = sampled(objective, model, guide, calls)
    wrong = deviates(gradients, exact_gradient, FALSE_ALARM, ROUNDING)
    off = torch.cat([wrong, deviates(bounds, exact, FALSE_ALARM, ROUNDING).reshape(1)])
    assert off.max() < 1, off


def total_variance(objective, model, guide, calls=60):
    gradients, _ = sampled(objective, model, guide, calls)
    return gradients.var(0).sum()


@pytest.mark.parametrize("case", ["bernoulli", "categorical", "normal", "outside and inside"])
def test_leaving_one_out_lowers_the_variance(case):
    model, guide, _ = CASES[case]
    assert total_variance(ELBO(8, LOO), model, guide) < 0.7 * total_variance(
        ELBO(8, NAIVE), model, guide
    )


@pytest.mark.parametrize("estimator", [NAIVE, LOO], ids=["score", "leave one out"])
def test_credit_within_plates_and_downstream_lowers_the_variance(estimator):
    """Against every factor and no plate: what a plain score-function estimator uses."""
    pair = Pair(categorical, categorical_guide, (), {})
    objective = ELBO(8, estimator, analytic=False)
    prepared = prepare(objective, pair)
    factors = frozenset(key for keys in prepared.dependencies.downstream.values() for key in keys)
    crude = replace(
        prepared,
        dependencies=Dependencies({"z": factors | {("model", ("x",))}}, {"z": frozenset({"data"})}),
    )

    def variance(prepared):
        gradients = []
        for _ in range(60):
            _, total = surrogate(objective, draw_with(prepared, pair), prepared, {})
            gradients.append(flat(torch.autograd.grad(total, parameters())))
        return torch.stack(gradients).var(0).sum()

    assert variance(prepared) < 0.7 * variance(crude)
