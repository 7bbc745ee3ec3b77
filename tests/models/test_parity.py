"""Our bounds and gradients are NumPyro's and JAX's, on the same draws, in float64."""

import math
from functools import partial
from itertools import product

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

from ppl_vi import ELBO, LeaveOneOut, ScoreFunction, ScoreFunctionELBO
from ppl_vi.drawing import draw_with
from ppl_vi.guides import GMMGuide
from ppl_vi.models import BayesianGMM
from ppl_vi.preparation import prepare
from ppl_vi.program import Pair, completed, draw_plainly, hide
from ppl_vi.program.run import run_guide, run_model
from ppl_vi.registry import GuideStart, guide_builder

K, N, S = 3, 12, 4
FIXED = {
    ("tau", 1): 4.0,
    ("tau", 2): torch.tensor([4.0, 6.0], dtype=torch.float64),
    ("sigma", 1): 0.8,
    ("sigma", 2): torch.tensor([0.8, 1.2], dtype=torch.float64),
    "pi": torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
}
PRIORS = {"concentration": 1.5, "spread": 2.0}
PIS = ("fixed", "learned", "dirichlet")
SIGMAS = {
    1: ("fixed", "learned", "spherical"),
    2: ("fixed", "learned", "spherical", "diagonal", "full"),
}
CASES = [(dims, pi, sigma) for dims in SIGMAS for pi, sigma in product(PIS, SIGMAS[dims])]
FAST = {(1, "learned", "learned"), (2, "dirichlet", "full")}
RTOL, SEED = 1e-10, 7
# The twins draw as ours do; neither sums an assignment out that the guide draws, nor integrates.
SAMPLED = ELBO(S, {"z": ScoreFunction(LeaveOneOut())}, analytic=False)


def grid(*cases):
    """A test on all cases, fast ones by default."""
    return pytest.mark.parametrize(
        ("dims", "pi", "sigma"),
        [pytest.param(*c, marks=() if c in FAST else pytest.mark.slow) for c in cases],
    )


def tau_with(pi):
    """A learned tau where weights are learned or drawn."""
    return "fixed" if pi == "fixed" else "learned"


def make_model(dims, tau, pi, sigma):
    options = {"tau": tau, "pi": pi, "sigma": sigma}
    fixed = {"tau": FIXED["tau", dims], "sigma": FIXED["sigma", dims], "pi": FIXED["pi"]}
    chosen = {name: fixed[name] if word == "fixed" else word for name, word in options.items()}
    return BayesianGMM(K, **chosen, **PRIORS)


def make_data(dims):
    centers = 4.0 * (torch.arange(N) % K - 1)
    return (centers.unsqueeze(-1) + torch.randn(N, dims)).squeeze(-1)


def twin_of(twins, model, learned, summed_out):
    """The NumPyro twin, given the learned parameters by name."""
    options = {name: getattr(model, name) for name in ("tau", "pi", "sigma")}
    numbers = {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    numbers |= {name: learned[name] for name, v in options.items() if v == "learned"}
    return twins.gmm(K, **numbers, **PRIORS, summed_out=summed_out)


def named_guide(name, model, data):
    start = init_to_value(values=model.initial_values(data))
    return guide_builder(name)(hide(model, ["z"]), GuideStart(start))


def prepared(objective, model, guide, data):
    """The pair, prepared, its parameters moved to where nothing is special, without gradients."""
    pair = Pair(model, guide, (data,), {})
    ready = prepare(objective, pair)
    for _, parameter in pyro.get_param_store().named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.grad = None
    return pair, ready


def arrays(tensors):
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def constrained(twins, values):
    """Parameters by name from unconstrained ones, by functions of JAX."""
    found = {}
    for name, constraint in pyro.get_param_store().get_state()["constraints"].items():
        kind = type(getattr(constraint, "base_constraint", constraint)).__name__.strip("_")
        found[name] = twins.TRANSFORMS[kind](values[name])
    return found


def check(twins, bound, surrogate, objective, pair, rtol_of=lambda name: RTOL):
    """Compare value and gradient with JAX's functions of the parameters, the draws fixed by SEED."""
    import jax

    start = arrays(dict(pyro.get_param_store().named_parameters()))
    for name, value in constrained(twins, start).items():
        np.testing.assert_allclose(pyro.param(name).detach(), value, rtol=RTOL, err_msg=name)
    pyro.set_rng_seed(SEED)
    loss = objective.differentiable_loss(pair.model, pair.guide, *pair.args)
    loss.backward()
    assert -loss.item() == pytest.approx(float(bound(constrained(twins, start))), rel=RTOL)
    gradient = jax.jit(jax.grad(lambda values: -surrogate(constrained(twins, values))))(start)
    for name, parameter in pyro.get_param_store().named_parameters():
        exact = np.asarray(gradient[name])
        worst = np.abs(parameter.grad.numpy() - exact).max() / np.abs(exact).max()
        assert worst < rtol_of(name), name


@grid(*CASES)
@pytest.mark.parametrize("tau", ["fixed", pytest.param("learned", marks=pytest.mark.slow)])
def test_the_joint_density_is_numpyros(twins, dims, tau, pi, sigma):
    import jax

    model, data = make_model(dims, tau, pi, sigma), make_data(dims)
    pair, ready = prepared(ELBO(), model, named_guide("normal", model, data), data)
    for structure in (ready.structure, completed(ready.structure)):
        labels = {} if structure.marginalized else {"z": torch.randint(K, (S, N))}
        with torch.no_grad(), pyro.validation_enabled(False):
            drawn = run_guide(ready.structure, pair, draw_plainly, S).values | labels
            factors = run_model(structure, pair, drawn, S)
        ours = sum(factor.log_prob.reshape(S, -1).sum(-1) for factor in factors)
        learned = arrays(dict(pyro.get_param_store().items()))
        densities = partial(
            twins.log_densities, twin_of(twins, model, learned, not labels), data.numpy()
        )
        values = arrays({name: drawn[name] for name in structure.of_kind("latent")})
        by_site = jax.jit(jax.vmap(densities))(values)
        theirs = sum(value.reshape(S, -1).sum(-1) for value in by_site.values())
        np.testing.assert_allclose(ours, theirs, rtol=RTOL)


def draws_of(objective, ready, pair):
    """The draws that the objective will make after SEED, by site."""
    pyro.set_rng_seed(SEED)
    with torch.no_grad():
        return {name: v.value for name, v in draw_with(ready, pair).latents.items()}


class MeanField:
    """The guide ``"normal"``: coordinates and log q of one particle."""

    name = "normal"

    def __init__(self, twins):
        self.total = twins.total

    def noise(self, draws, sites):
        store = pyro.get_param_store()
        mine = {n: [store[f"NormalGuide.{kind}.{n}"] for kind in ("locs", "scales")] for n in sites}
        self.start = {n: latent.start for n, latent in self.guide._latents.items()}
        standard = {
            n: (draws[f"{n}_unconstrained"] - self.start[n] - mine[n][0]) / mine[n][1]
            for n in sites
        }
        return arrays(standard)

    def draw(self, parameters, noise):
        from numpyro.distributions import Normal

        locs = {n: self.start[n].numpy() + parameters[f"NormalGuide.locs.{n}"] for n in noise}
        scales = {n: parameters[f"NormalGuide.scales.{n}"] for n in noise}
        found = {n: locs[n] + scales[n] * noise[n] for n in noise}
        return found, self.total({n: Normal(locs[n], scales[n]).log_prob(found[n]) for n in noise})


class Joint:
    """The guide ``"multivariate_normal"``: one vector of all sites, in the model's order."""

    name = "multivariate_normal"

    def __init__(self, twins):
        self.bijection = lambda site: twins.dist.biject_to(twins.SUPPORTS[site])

    def noise(self, draws, sites):
        loc, scale, tril = (self._own(pyro.get_param_store(), n) for n in self._names)
        ((_, value),) = [(n, v) for n, v in draws.items() if n.startswith("_Multi")]
        factor = scale.unsqueeze(-1) * tril
        self.shapes = {n: self.bijection(n).inverse_shape(site.shape) for n, site in sites.items()}
        standard = torch.linalg.solve_triangular(factor, (value - loc).mT, upper=False).mT
        return standard.detach().numpy()

    def draw(self, parameters, noise):
        from numpyro.distributions import MultivariateNormal

        loc, scale, tril = (self._own(parameters, name) for name in self._names)
        factor = scale[:, None] * tril
        e = loc + factor @ noise
        units = self.guide.factor.numpy()
        vector = self.guide.location.numpy() + units * e
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        found = {
            name: vector[end - math.prod(shape) : end].reshape(shape)
            for end, (name, shape) in zip(ends, self.shapes.items(), strict=True)
        }
        log_q = MultivariateNormal(loc, scale_tril=factor).log_prob(e)
        return found, log_q - np.log(units).sum()

    _names = ("loc", "scale", "scale_tril")

    @staticmethod
    def _own(parameters, name):
        return parameters[f"MultivariateNormalGuide.{name}"]


FAST_CASE = (MeanField, 1, "learned", "learned")


@pytest.mark.parametrize(
    ("family", "dims", "pi", "sigma"),
    [
        pytest.param(*case, marks=() if case == FAST_CASE else pytest.mark.slow)
        for case in ((family, *case) for family in (MeanField, Joint) for case in CASES)
    ],
)
def test_the_bound_and_its_gradient_of_a_named_guide(twins, family, dims, pi, sigma):
    import jax

    model, data, objective = (
        make_model(dims, tau_with(pi), pi, sigma),
        make_data(dims),
        ELBO(S, analytic=False),
    )
    theirs = family(twins)
    theirs.guide = named_guide(theirs.name, model, data)
    pair, ready = prepared(objective, model, theirs.guide, data)
    latents = ready.structure.of_kind("latent")
    sites = {name: site for name, site in ready.structure.sites.items() if name in latents}
    noise = theirs.noise(draws_of(objective, ready, pair), sites)

    def bound(parameters):
        def log_weight(standard):
            coordinates, log_q = theirs.draw(parameters, standard)
            twin = twin_of(twins, model, parameters, summed_out=True)
            return twins.log_joint(twin, data.numpy(), coordinates) - log_q

        return jax.vmap(log_weight)(noise).mean()

    check(twins, bound, bound, objective, pair)


def explicit_draws(twins, parameters, draws, moving):
    """Values of GMMGuide's sites, and their log q by plate; values move with the parameters or not."""
    import numpyro.distributions as dist

    drawn_at = arrays(dict(pyro.get_param_store().items()))
    made, values = {"z": dist.Categorical(logits=parameters["z_logits"])}, dict(draws)
    for name in draws.keys() & {"mu", "sigma"}:
        loc, scale = parameters[f"{name}_loc"], parameters[f"{name}_scale"]
        normal = dist.Normal(loc, scale).to_event(loc.ndim - 1)
        exp = dist.transforms.ExpTransform()
        made[name] = normal if name == "mu" else dist.TransformedDistribution(normal, exp)
        if moving:
            plain = draws[name] if name == "mu" else np.log(draws[name])
            noise = (plain - drawn_at[f"{name}_loc"]) / drawn_at[f"{name}_scale"]
            values[name] = loc + scale * noise if name == "mu" else exp(loc + scale * noise)
    if "pi" in draws:
        made["pi"] = dist.Dirichlet(parameters["pi_concentration"])
        if moving:
            values["pi"] = twins.pathwise_dirichlet(
                parameters["pi_concentration"], drawn_at["pi_concentration"], draws["pi"]
            )
    return values, {name: made[name].log_prob(values[name]) for name in draws}


def leave_one_out_terms(log_p, log_q, sites):
    """The sum of log q times the credit of each draw, by hand."""
    from jax.lax import stop_gradient

    data = log_p["x"].sum(-1)
    mean, weights = data[:, None], log_p["z"].sum(-1)
    downstream = {"mu": mean, "sigma": mean, "z": log_p["x"], "pi": weights}
    terms = 0.0
    for name in sites:
        f = stop_gradient(log_p[name] - log_q[name] + downstream[name])
        others = (f.sum(0) - f) / (S - 1)
        terms += (log_q[name] * (f - others)).sum() / S
    return terms


@grid(*((d, pi, sigma) for d, pi, sigma in CASES if sigma != "full"))
@pytest.mark.parametrize(
    "objective", [ScoreFunctionELBO(S), pytest.param(SAMPLED, marks=pytest.mark.slow)]
)
def test_the_bound_and_its_gradient_of_the_explicit_guide(twins, objective, dims, pi, sigma):
    import jax

    model, data = make_model(dims, tau_with(pi), pi, sigma), make_data(dims)
    pair, ready = prepared(objective, model, GMMGuide(model), data)
    draws = arrays(draws_of(objective, ready, pair))
    pathwise = isinstance(objective, ELBO)

    def bound_and_terms(parameters):
        values, log_q = explicit_draws(twins, parameters, draws, pathwise)
        twin = twin_of(twins, model, parameters, summed_out=False)
        log_p = jax.vmap(lambda v: twins.log_densities(twin, data.numpy(), v))(values)
        log_w = sum(v.reshape(S, -1).sum(-1) for v in log_p.values())
        log_w -= sum(v.reshape(S, -1).sum(-1) for v in log_q.values())
        sites = ["z"] if pathwise else list(draws)
        return log_w.mean(), leave_one_out_terms(log_p, log_q, sites)

    check(
        twins,
        lambda parameters: bound_and_terms(parameters)[0],
        lambda parameters: sum(bound_and_terms(parameters)),
        objective,
        pair,
        # torch's derivative of a Dirichlet draw is an approximation
        lambda name: 1e-3 if pathwise and name == "pi_concentration" else RTOL,
    )
