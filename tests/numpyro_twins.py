"""NumPyro programs with the joint densities of our models, written independently of them.

With what a bound of them needs on the side of JAX: densities by site, transforms, derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import relu, softmax, softplus
from numpyro import handlers
from numpyro.distributions import constraints
from scipy.special import betainc
from scipy.stats import beta

Program = Callable[[Any], None]


def gmm(
    num_components: int,
    *,
    tau: Any,
    pi: Any,
    sigma: Any,
    concentration: float = 1.0,
    spread: float = 1.0,
    summed_out: bool = False,
) -> Program:
    """The twin of ``BayesianGMM``; learned parameters are numbers, with or without ``z``."""

    def model(data: Any) -> None:
        event_shape = data.shape[1:]
        weights = pi
        if isinstance(pi, str):
            alpha = jnp.full(num_components, concentration, data.dtype)
            weights = numpyro.sample("pi", dist.Dirichlet(alpha))
        with numpyro.plate("component", num_components):
            width = jnp.broadcast_to(jnp.asarray(tau, data.dtype), event_shape)
            prior = dist.Normal(jnp.zeros_like(width), width).to_event(len(event_shape))
            mu = numpyro.sample("mu", prior)
            scale = _scale_tril(sigma, jnp.asarray(spread, data.dtype), event_shape)
        scale = jnp.broadcast_to(scale, (num_components, *scale.shape[-2:]))
        rows, means = (data, mu) if event_shape else (data[:, None], mu[:, None])
        with numpyro.plate("data", len(data)):
            if summed_out:
                components = dist.MultivariateNormal(means, scale_tril=scale)
                mixture = dist.MixtureSameFamily(dist.Categorical(probs=weights), components)
                numpyro.sample("x", mixture, obs=rows)
            else:
                z = numpyro.sample("z", dist.Categorical(probs=weights))
                numpyro.sample(
                    "x", dist.MultivariateNormal(means[z], scale_tril=scale[z]), obs=rows
                )

    return model


def _scale_tril(sigma: Any, spread: Any, event_shape: tuple[int, ...]) -> Any:
    """``[..., D, D]``: every choice of sigma is a full covariance, if a plain one."""
    identity = jnp.eye(event_shape[0] if event_shape else 1)
    prior = dist.HalfCauchy(spread)
    if not isinstance(sigma, str):
        return jnp.asarray(sigma)[..., None] * identity
    if sigma == "spherical":
        return numpyro.sample("sigma", prior)[..., None, None] * identity
    deviations = numpyro.sample("sigma", prior.expand(event_shape).to_event(1))[..., None]
    if sigma == "diagonal":
        return deviations * identity
    return deviations * numpyro.sample("correlation", dist.LKJCholesky(event_shape[0], 1.0))


def log_densities(program: Program, data: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The log-density of each site at ``values``, ``[*plates]``."""
    traced = handlers.trace(handlers.substitute(program, dict(values))).get_trace(data)
    sites = {name: site for name, site in traced.items() if site["type"] == "sample"}
    return {name: site["fn"].log_prob(site["value"]) for name, site in sites.items()}


def total(terms: Mapping[str, Any]) -> Any:
    """The sum over sites and plates."""
    return sum(term.sum() for term in terms.values())


SUPPORTS = {
    "pi": constraints.simplex,
    "mu": constraints.real,
    "sigma": constraints.positive,
    "correlation": constraints.corr_cholesky,
}


def log_joint(program: Program, data: Any, coordinates: Mapping[str, Any]) -> Any:
    """log p at unconstrained coordinates by site, with the log-determinants."""
    bijections = {name: dist.biject_to(SUPPORTS[name]) for name in coordinates}
    values = {name: bijections[name](u) for name, u in coordinates.items()}
    log_dets = {n: bijections[n].log_abs_det_jacobian(u, values[n]) for n, u in coordinates.items()}
    return total(log_densities(program, data, values)) + total(log_dets)


TRANSFORMS = {
    "Real": lambda x: x,
    "GreaterThan": jnp.exp,
    "SoftplusPositive": softplus,
    "Simplex": softmax,  # one coordinate more than needed
    "UnitLowerCholesky": lambda x: jnp.tril(x, -1) + jnp.eye(len(x)),
}
"""How Pyro's parameter store reaches a constraint, by the constraint's class."""


def pathwise_dirichlet(alpha: Any, at: np.ndarray, value: np.ndarray) -> Any:
    """``[S, K]``: draws made ``at`` a concentration [K], with torch's derivative by ``alpha``.

    Each coordinate moves along its Beta marginal at a fixed distribution function, and the others
    shrink in proportion: d value_i / d alpha_j = G_j (1[i = j] - value_i).
    """
    rest, step = at.sum() - at, 1e-5 * at
    slope = betainc(at + step, rest, value) - betainc(at - step, rest, value)
    moved = -slope / (2 * step) / beta.pdf(value, at, rest) / (1 - value)
    jacobian = moved[:, None, :] * (np.eye(len(at)) - value[:, :, None])
    return value + jacobian @ (alpha - at)


def conjugate_gmm(
    num_components: int, concentration: float, center: Any, tau: Any, spread: Any
) -> Program:
    """The twin of ``ConjugateGMM`` with diagonal precisions."""

    def model(data: Any) -> None:
        pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(num_components, concentration)))
        with numpyro.plate("component", num_components):
            mu = numpyro.sample("mu", dist.Normal(center, tau).to_event(1))
            prior = dist.Gamma(jnp.ones_like(spread), spread**2).to_event(1)
            precision = numpyro.sample("precision", prior)
        with numpyro.plate("data", len(data)):
            z = numpyro.sample("z", dist.Categorical(probs=pi))
            component = dist.Normal(mu[z], precision[z] ** -0.5).to_event(1)
            numpyro.sample("x", component, obs=data)

    return model


def conjugate_gmm_guide(start: Mapping[str, Any]) -> Program:
    """Independent factors of the twin of ``ConjugateGMM``, z included, at parameters by name."""

    def guide(data: Any) -> None:
        size = len(start["pi"])
        numpyro.sample("pi", dist.Dirichlet(positive("pi", start)))
        loc = free("loc", start)
        with numpyro.plate("component", size):
            numpyro.sample("mu", dist.Normal(loc, positive("scale", start)).to_event(1))
            shape, rate = positive("shape", start), positive("rate", start)
            numpyro.sample("precision", dist.Gamma(shape, rate).to_event(1))
        logits = free("logits", start)
        with numpyro.plate("data", len(data)):
            numpyro.sample("z", dist.Categorical(logits=logits))

    return guide


def linear_regression(shape: float, rate: float, spread: float) -> Program:
    """The twin of ``BayesianLinearRegression`` with relevances."""

    def model(data: Any) -> None:
        x, y = data
        tau = numpyro.sample("tau", dist.Gamma(shape, rate))
        prior = dist.Gamma(shape * jnp.ones(x.shape[1]), rate).to_event(1)
        alpha = numpyro.sample("alpha", prior)
        w = numpyro.sample("w", dist.Normal(0.0, alpha**-0.5).to_event(1))
        b = numpyro.sample("b", dist.Normal(0.0, spread))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(x @ w + b, tau**-0.5), obs=y)

    return model


def linear_regression_guide(start: Mapping[str, Any]) -> Program:
    """Independent factors of the twin of ``BayesianLinearRegression``, at parameters by name."""

    def guide(data: Any) -> None:
        numpyro.sample("tau", dist.Gamma(positive("tau_shape", start), positive("tau_rate", start)))
        alpha = dist.Gamma(positive("alpha_shape", start), positive("alpha_rate", start))
        numpyro.sample("alpha", alpha.to_event(1))
        tril = free("tril", start, constraints.lower_cholesky)
        loc = free("loc", start)
        numpyro.sample("w", dist.MultivariateNormal(loc, scale_tril=tril))
        numpyro.sample("b", dist.Normal(free("b", start), positive("b_scale", start)))

    return guide


def free(name: str, start: Mapping[str, Any], constraint: Any = constraints.real) -> Any:
    """A parameter of a guide, ``q_name``."""
    return numpyro.param(f"q_{name}", start[name], constraint=constraint)


def positive(name: str, start: Mapping[str, Any]) -> Any:
    """A positive parameter of a guide."""
    return free(name, start, constraints.positive)


def vae_bound(x: Any, noise: Any, likelihood: str, prior: str, closed: Any) -> Program:
    """The ELBO of a VAE with one hidden layer on each side, a function of its weights by torch's names.

    Args:
        x: ``[N, pixels]``.
        noise: ``[S, N, size]``.
        likelihood: of the pixels.
        prior: of the latent.
        closed: whether the KL is in closed form; ``"entropy"`` for log q alone.
    """

    def layer(parameters: Any, name: str, value: Any) -> Any:
        (weight,) = [v for n, v in parameters.items() if n.endswith(f"{name}.weight")]
        (bias,) = [v for n, v in parameters.items() if n.endswith(f"{name}.bias")]
        return value @ weight.T + bias

    def prior_of(p: Any) -> Any:
        if prior == "normal":
            return dist.Normal(jnp.zeros(noise.shape[-1]), 1.0).to_event(1)
        parts = dist.Normal(p["prior_loc"], jnp.exp(p["prior_scale"])).to_event(1)
        if prior == "learned":
            return parts
        return dist.MixtureSameFamily(dist.Categorical(logits=p["prior_logits"]), parts)

    def likelihood_of(p: Any, output: Any) -> Any:
        if likelihood == "bernoulli":
            return dist.Bernoulli(logits=output).to_event(1)
        if likelihood == "categorical":
            return dist.Categorical(logits=output.reshape(*output.shape[:-1], -1, 5)).to_event(1)
        return dist.Normal(output, jnp.exp(p["noise"])).to_event(1)

    def bound(p: Any) -> Any:
        encoder = {n: v for n, v in p.items() if n.startswith("encoder")}
        decoder = {n: v for n, v in p.items() if n.startswith("decoder")}
        hidden = relu(layer(encoder, "body.1.0", x))
        loc = layer(encoder, "loc", hidden)
        scale = softplus(layer(encoder, "scale", hidden)) + 1e-6
        z = loc + scale * noise
        q = dist.Normal(loc, scale).to_event(1)
        output = layer(decoder, "0.2", relu(layer(decoder, "0.0", z)))
        log_p = likelihood_of(p, output).log_prob(x).sum(-1).mean()
        if closed is True:
            return log_p - dist.kl_divergence(q, prior_of(p)).sum()
        entropy = q.entropy().sum() if closed else -q.log_prob(z).sum(-1).mean()
        return log_p + prior_of(p).log_prob(z).sum(-1).mean() + entropy

    return bound
