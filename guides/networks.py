"""Small networks inside guides, their weights one vector that optimizers move in small steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppl_vi import networks

UNIT = 0.1
"""Of weights: a step that suits a location or a log scale is ten times too large for a network."""


def flat_weights(module: nn.Module) -> nn.Parameter:
    """``[weights]``: all weights of the module end to end, in units of 0.1."""
    parts = [weight.detach().reshape(-1) for weight in module.parameters()]
    return nn.Parameter(torch.cat(parts) / UNIT)


def called_with(module: nn.Module, weights: Tensor, *args: Any) -> Any:
    """What the module gives with these weights instead of its own.

    Args:
        module: whose weights ``flat_weights`` laid end to end.
        weights: such a vector.
        *args: of the module.
    """
    named = dict(module.named_parameters())
    parts = (UNIT * weights).split([weight.numel() for weight in named.values()])
    own = {n: part.reshape(named[n].shape) for n, part in zip(named, parts, strict=True)}
    return functional_call(module, own, args)


def perceptron(sizes: tuple[int, ...], last: float) -> nn.Sequential:
    """Linear maps of these sizes with tanh in between; the last one's weights times ``last``."""
    network = networks.perceptron(sizes, nn.Tanh)
    with torch.no_grad():
        for weight in network[-1].parameters():
            weight.mul_(last)
    return network
