"""The models and guides as NumPyro programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

from peers.data import start_of
from peers.settings import COMPONENTS, GROUPS, IN_GROUP, Problem

Program = Callable[..., Any]


def _mixture(x: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros((COMPONENTS, 2)), 5.0).to_event(2))
    equal = dist.Categorical(logits=jnp.zeros(COMPONENTS))
    with numpyro.plate("data", len(x)):
        components = dist.Normal(mu, 1.0).to_event(1)
        numpyro.sample("x", dist.MixtureSameFamily(equal, components), obs=x)


def _schools(y: Array, error: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(len(y)), 1.0).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu + tau * theta, error), obs=y)


def _hierarchy(y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([GROUPS]).to_event(1))
    with numpyro.plate("data", GROUPS):
        rows = dist.Normal(theta[:, None], sigma).expand([GROUPS, IN_GROUP])
        numpyro.sample("y", rows.to_event(1), obs=y)


def programs(problem: Problem, arrays: dict[str, np.ndarray]) -> tuple[Program, Program]:
    """Model and guide."""
    start = start_of(arrays)

    def weighted() -> AbstractContextManager[Any]:
        if problem.scale == 1.0:
            return nullcontext()
        scaled: AbstractContextManager[Any] = handlers.scale(scale=problem.scale)
        return scaled

    def logistic(x: Array, y: Array) -> None:
        w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
        with numpyro.plate("data", len(x)), weighted():
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    if problem.model == "vae":
        return _vae(start, weighted)
    plain: dict[str, Program] = {"mixture": _mixture, "schools": _schools, "hierarchy": _hierarchy}
    return plain.get(problem.model, logistic), _mean_field(problem, start)


def _mean_field(problem: Problem, start: dict[str, np.ndarray]) -> Program:
    """Independent Normals, over the logarithms of positive latents."""
    ends = np.cumsum([site.size for site in problem.sites])[:-1]
    locs, log_scales = np.split(start["loc"], ends), np.split(start["log_scale"], ends)

    def guide(*data: Array) -> None:
        for site, loc, log_scale in zip(problem.sites, locs, log_scales, strict=True):
            family = dist.LogNormal if site.positive else dist.Normal
            mean = numpyro.param(f"{site.name}_loc", loc.reshape(site.shape))
            scale = numpyro.param(f"{site.name}_log_scale", log_scale.reshape(site.shape))
            normal = family(mean, jnp.exp(scale))
            numpyro.sample(site.name, normal.to_event(len(site.shape)))

    return guide


def _vae(start: dict[str, np.ndarray], weighted: Program) -> tuple[Program, Program]:
    def layer(x: Array, name: str) -> Array:
        weight, bias = f"{name}_weight", f"{name}_bias"
        product = x @ numpyro.param(weight, start[weight])
        return jnp.add(product, numpyro.param(bias, start[bias]))

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)), weighted():
            prior = dist.Normal(jnp.zeros((len(x), start["code_loc_bias"].size)), 1.0)
            z = numpyro.sample("z", prior.to_event(1))
            logits = layer(jax.nn.relu(layer(z, "decoder")), "pixels")
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        hidden = jax.nn.relu(layer(x, "encoder"))
        scale = jnp.exp(layer(hidden, "code_log_scale"))
        with numpyro.plate("data", len(x)), weighted():
            numpyro.sample("z", dist.Normal(layer(hidden, "code_loc"), scale).to_event(1))

    return model, guide
