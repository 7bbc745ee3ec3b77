"""The models and guides as Pyro programs, which Pyro and ppl-vi share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from peers.data import start_of
from peers.pyro_names import flat
from peers.settings import COMPONENTS, GROUPS, IN_GROUP, Problem

Program = Callable[..., Any]


def _mixture(x: Tensor) -> None:
    normal = dist.Normal(x.new_zeros(COMPONENTS, 2), 5.0).to_event(2)
    mu = pyro.sample("mu", normal)
    components = dist.Normal(mu, 1.0).to_event(1)
    equal = dist.Categorical(logits=x.new_zeros(COMPONENTS))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(equal, components), obs=x)


def _schools(y: Tensor, error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    theta = pyro.sample("theta", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + tau * theta, error), obs=y)


def _hierarchy(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(y.new_tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(2.0)))
    theta = pyro.sample("theta", dist.Normal(mu, tau).expand([GROUPS]).to_event(1))
    with pyro.plate("data", GROUPS):
        rows = dist.Normal(theta.unsqueeze(-1), sigma).expand([GROUPS, IN_GROUP])
        pyro.sample("y", rows.to_event(1), obs=y)


def programs(problem: Problem, arrays: dict[str, np.ndarray], scale: float) -> tuple[Any, Any]:
    """Model and guide.

    Args:
        problem: tells which.
        arrays: tell the start.
        scale: what rows count for; one where the library scales minibatches itself.
    """
    # Copies: a fit moves the tensors that it starts with.
    start = {name: torch.tensor(array) for name, array in start_of(arrays).items()}

    def weighted() -> AbstractContextManager[Any]:
        if scale == 1.0:
            return nullcontext()
        scaled: AbstractContextManager[Any] = pyro.poutine.scale(scale=scale)
        return scaled

    def logistic(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(x)), weighted():
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    if problem.model == "vae":
        return _vae(start, weighted)
    plain = {"mixture": _mixture, "schools": _schools, "hierarchy": _hierarchy}
    return plain.get(problem.model, logistic), _mean_field(problem, start)


def _mean_field(problem: Problem, start: dict[str, Tensor]) -> Program:
    """Independent Normals, over the logarithms of positive latents."""
    sizes = [site.size for site in problem.sites]
    locs, log_scales = start["loc"].split(sizes), start["log_scale"].split(sizes)

    def guide(*data: Tensor) -> None:
        for site, loc, log_scale in zip(problem.sites, locs, log_scales, strict=True):
            family = dist.LogNormal if site.positive else dist.Normal
            mean = pyro.param(f"{site.name}_loc", loc.reshape(site.shape))
            scale = pyro.param(f"{site.name}_log_scale", log_scale.reshape(site.shape)).exp()
            pyro.sample(site.name, family(mean, scale).to_event(len(site.shape)))

    return guide


def _vae(start: dict[str, Tensor], weighted: Program) -> tuple[Program, Program]:
    def layer(x: Tensor, name: str) -> Tensor:
        weight, bias = f"{name}_weight", f"{name}_bias"
        return torch.addmm(pyro.param(bias, start[bias]), x, pyro.param(weight, start[weight]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), weighted():
            size = start["code_loc_bias"].numel()
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), size), 1.0).to_event(1))
            logits = layer(layer(z, "decoder").relu(), "pixels")
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        hidden = layer(x, "encoder").relu()
        scale = layer(hidden, "code_log_scale").exp()
        with pyro.plate("data", len(x)), weighted():
            pyro.sample("z", dist.Normal(layer(hidden, "code_loc"), scale).to_event(1))

    return model, guide


def values_now(problem: Problem) -> dict[str, np.ndarray]:
    """A copy of the parameters in Pyro's store, under the names of the start."""
    store = pyro.get_param_store()
    found = {name: value.detach().numpy().copy() for name, value in store.items()}
    return flat(problem, found)
