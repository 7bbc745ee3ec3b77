"""Small networks inside guides, their weights one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.func import functional_call


def flat_weights(module: nn.Module) -> Tensor:
    """``[weights]``: all weights of the module end to end."""
    return torch.cat([weight.detach().reshape(-1) for weight in module.parameters()])


def called_with(module: nn.Module, weights: Tensor, *args: Any) -> Any:
    """What the module gives with these weights instead of its own.

    Args:
        module: whose weights ``flat_weights`` laid end to end.
        weights: such a vector.
        *args: of the module.
    """
    named = dict(module.named_parameters())
    parts = weights.split([weight.numel() for weight in named.values()])
    own = {n: part.reshape(named[n].shape) for n, part in zip(named, parts, strict=True)}
    return functional_call(module, own, args)


class WeightedTransform(Transform):
    """A one-to-one map made by a module with given weights.

    It remembers its last point, whose density costs nothing more.

    Args:
        module: called with ``[..., D]`` points and whether to invert; gives the points, or those whose
            images they are, and ``[...]`` log |dy / dx|.
        weights: as ``flat_weights`` laid them end to end.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, module: nn.Module, weights: Tensor) -> None:
        super().__init__(cache_size=1)
        self._module, self._weights = module, weights
        self._log_volume: tuple[Tensor | None, Tensor | None] = None, None

    def _moved(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = called_with(self._module, self._weights, x, inverse)
        return found

    def _call(self, x: Tensor) -> Tensor:
        y, log_volume = self._moved(x, inverse=False)
        self._log_volume = x, log_volume
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_volume = self._moved(y, inverse=True)
        self._log_volume = x, log_volume
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        known, log_volume = self._log_volume
        if log_volume is None or x is not known:
            log_volume = self._moved(x, inverse=False)[1]
        return log_volume
