"""The models by hand in torch, over flat latents: for the hand-written peers and for the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from peers.settings import COMPONENTS, Problem

_LOG_2PI = math.log(2 * math.pi)
Tensors = Mapping[str, Tensor]


def _normal(x: Tensor, loc: Tensor | float, log_scale: Tensor | float) -> Tensor:
    """Log-density, summed."""
    inverse = torch.exp(-torch.as_tensor(log_scale))
    return (-0.5 * ((x - loc) * inverse) ** 2 - log_scale - 0.5 * _LOG_2PI).sum()


def _half_normal(log_x: Tensor, log_scale: float) -> Tensor:
    """Log-density of the logarithm of a half-Normal number."""
    return _normal(log_x.exp(), 0.0, log_scale) + math.log(2.0) + log_x


def _mixture(z: Tensor, data: Tensors, scale: float) -> Tensor:
    mu = z.view(COMPONENTS, 2)
    squares = ((data["x"].unsqueeze(1) - mu) ** 2).sum(-1)
    rows = torch.logsumexp(-0.5 * squares, 1) - math.log(COMPONENTS) - _LOG_2PI
    return _normal(mu, 0.0, math.log(5.0)) + rows.sum()


def _schools(z: Tensor, data: Tensors, scale: float) -> Tensor:
    mu, log_tau, theta = z[0], z[1], z[2:]
    tau = log_tau.exp()
    half_cauchy = math.log(2 / (math.pi * 5)) - torch.log1p((tau / 5) ** 2)
    prior = _normal(mu, 0.0, math.log(5.0)) + half_cauchy + log_tau + _normal(theta, 0.0, 0.0)
    return prior + _normal(data["y"], mu + tau * theta, data["error"].log())


def _logistic(z: Tensor, data: Tensors, scale: float) -> Tensor:
    logits = data["x"] @ z
    misfit = functional.binary_cross_entropy_with_logits(logits, data["y"], reduction="sum")
    return _normal(z, 0.0, 0.0) - scale * misfit


def _hierarchy(z: Tensor, data: Tensors, scale: float) -> Tensor:
    mu, log_tau, log_sigma, theta = z[0], z[1], z[2], z[3:]
    prior = _normal(mu, 0.0, math.log(5.0)) + _half_normal(log_tau, math.log(2.0))
    prior = prior + _half_normal(log_sigma, math.log(2.0)) + _normal(theta, mu, log_tau)
    return prior + _normal(data["y"], theta.unsqueeze(-1), log_sigma)


_LOG_JOINTS: dict[str, Callable[[Tensor, Tensors, float], Tensor]] = {
    "mixture": _mixture,
    "schools": _schools,
    "logistic": _logistic,
    "hierarchy": _hierarchy,
}


def log_joint(problem: Problem, z: Tensor, data: Tensors) -> Tensor:
    """Log-density of the data and of the latents, positive ones by their logarithms.

    Args:
        problem: tells the model, and what rows of minibatches are multiplied by.
        z: ``[size]``, the latents in the order of the problem's sites.
        data: all rows, or those of a minibatch.
    """
    return _LOG_JOINTS[problem.model](z, data, problem.scale)


def _layer(x: Tensor, parameters: Tensors, name: str) -> Tensor:
    return torch.addmm(parameters[f"{name}_bias"], x, parameters[f"{name}_weight"])


def _vae_elbo(parameters: Tensors, data: Tensors, scale: float) -> Tensor:
    x = data["x"]
    hidden = _layer(x, parameters, "encoder").relu()
    loc = _layer(hidden, parameters, "code_loc")
    log_scale = _layer(hidden, parameters, "code_log_scale")
    noise = torch.randn_like(loc)
    z = loc + log_scale.exp() * noise
    logits = _layer(_layer(z, parameters, "decoder").relu(), parameters, "pixels")
    misfit = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = (0.5 * z**2 - 0.5 * noise**2 - log_scale).sum()
    return -scale * (misfit + kl)


def elbo(problem: Problem, parameters: Tensors, data: Tensors) -> Tensor:
    """One draw of the ELBO: log p - log q at that draw, as every peer takes it."""
    if problem.model == "vae":
        return _vae_elbo(parameters, data, problem.scale)
    loc, log_scale = parameters["loc"], parameters["log_scale"]
    z = loc + log_scale.exp() * torch.randn_like(loc)
    # The noise in log q has no gradient, so that its mean may stand here.
    return log_joint(problem, z, data) + (log_scale + 0.5 * (1 + _LOG_2PI)).sum()
