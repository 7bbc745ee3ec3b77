"""Weights by stick breaking: the Dirichlet process, truncated."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad


def stick_breaking(name: str, num_weights: int, concentration: float, like: Tensor) -> Tensor:
    """``[K]``: weights pi_k = v_k Π_{j<k} (1 - v_j), v_k ~ Beta(1, concentration), the last the rest.

    Args:
        name: of the site of v [K - 1] and of its plate.
        num_weights: K.
        concentration: the larger, the more weights that matter.
        like: a tensor of the dtype and on the device that they should have.

    Source: Sethuraman (1994); Blei and Jordan (2006).
    """
    if num_weights == 1:
        return like.new_ones(1)
    one = like.new_ones(())
    with pyro.plate(f"{name}_plate", num_weights - 1):
        v = pyro.sample(name, dist.Beta(one, concentration * one))
    weights: Tensor = pad(v, (0, 1), value=1.0) * pad((1 - v).cumprod(-1), (1, 0), value=1.0)
    return weights


def sticks_of(weights: Tensor) -> Tensor:
    """``[K - 1]``: the v that give these weights ``[K]``."""
    left = weights.flip(0).cumsum(0).flip(0)
    return (weights / left)[:-1].clamp(min=torch.finfo(weights.dtype).eps)
