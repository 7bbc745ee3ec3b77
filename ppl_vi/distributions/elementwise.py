"""What distributions of single numbers have in common."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

Number = Tensor | float
Shape = torch.Size | tuple[int, ...]


class Elementwise(dist.TorchDistribution):
    """A distribution of single numbers; the parameters broadcast to the batch shape.

    A subclass has ``names`` of its parameters, ``mode``, and ``_log_density`` inside the support.
    """

    has_rsample = True
    names: ClassVar[tuple[str, ...]]

    def __init__(self, *parameters: Number, validate_args: bool | None = None) -> None:
        parameters = broadcast_all(*parameters)
        for name, parameter in zip(self.names, parameters, strict=True):
            setattr(self, name, parameter)
        super().__init__(parameters[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        for name in self.names:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(Elementwise, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = self.support.check(value)
        # A logarithm taken outside the support would spoil the gradient of what is inside.
        value = torch.where(inside, value, self.mode.detach())
        return torch.where(inside, self._log_density(value), -math.inf)
