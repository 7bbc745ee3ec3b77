"""Expected log-densities E log p(v | parameters), by family.

Value and parameters are independent under q; each is certain, or has a law. Every function returns
``[*batch]``, with the event summed out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from ppl_vi.conjugacy.gaussian import Multilinear, multilinear
from ppl_vi.conjugacy.positive import Positive, certain_positive
from ppl_vi.conjugacy.values import NotConjugateError, Uncertain, Unknown, uncertain_in

Density = Callable[[Any, Any, int], Tensor]
"""``density(distribution, value, events)``, whose last ``events`` batch dimensions are of the event."""

_DENSITIES: dict[str, Density] = {}


def density(*families: str) -> Callable[[Density], Density]:
    """Enter the expected log-density of a family of distributions, by the name of its class."""

    def enter(one: Density) -> Density:
        for family in families:
            _DENSITIES[family] = one
        return one

    return enter


def expected_log_density(distribution: Any, value: Any) -> Tensor:
    """``[*batch]``: E log p(value) under the laws of the value and of the parameters.

    Raises:
        NotConjugateError: there is none in closed form here.
    """
    if next(uncertain_in((value, held_by(distribution))), None) is None:
        found: Tensor = distribution.log_prob(value)
        return found
    return _found(distribution, value, 0)


def held_by(distribution: Any) -> list[Any]:
    """What a distribution holds, and the distributions inside it."""
    values = list(vars(distribution).values())
    inside = [held for v in values if isinstance(v, Distribution) for held in held_by(v)]
    return [*values, *inside]


def _found(distribution: Any, value: Any, events: int) -> Tensor:
    if isinstance(distribution, Independent):
        return _found(
            distribution.base_dist, value, events + distribution.reinterpreted_batch_ndims
        )
    if isinstance(distribution, MaskedDistribution):
        found = _found(distribution.base_dist, value, 0)
        mask: Any = distribution._mask
        masked = torch.where(mask, found, torch.zeros_like(found))
        return summed(masked, distribution.base_dist, events)
    family = type(distribution).__name__
    if family not in _DENSITIES:
        raise NotConjugateError(f"{family} has no expected log-density here")
    return _DENSITIES[family](distribution, value, events)


def summed(tensor: Tensor, distribution: Any, events: int) -> Tensor:
    """The sum over the event's entries, along which the tensor may have one that stands for all."""
    if not events:
        return tensor
    shape = distribution.batch_shape
    batch = tensor.shape[: max(0, tensor.dim() - events)]
    entries = tensor.expand([*batch, *shape[len(shape) - events :]])
    return entries.sum(tuple(range(-events, 0)))


def needed(law: Any, name: str, kind: str) -> Any:
    """The law, or an error that says how it was lost."""
    if law is None:
        raise NotConjugateError(f"its {name} must be {kind}")
    return law


def lost(value: Any, name: str) -> None:
    if isinstance(value, Uncertain) and isinstance(value.law, Unknown):
        raise NotConjugateError(f"its {name} comes from {value.law.reason}, which keeps no moments")


def gaussian(value: Any, name: str) -> Multilinear:
    """The law of a value that must be multilinear in Gaussian latents."""
    lost(value, name)
    law: Multilinear = needed(multilinear(value), name, "an affine function of Gaussian latents")
    return law


def positive(value: Any, name: str) -> Positive:
    """The law of a value that must be a product of positive latents."""
    lost(value, name)
    kind = "a product of powers of Gamma or Beta latents"
    law: Positive = needed(certain_positive(value), name, kind)
    return law


def mean_of(law: Positive, name: str) -> Tensor:
    """E v."""
    mean: Tensor = needed(law.mean(), name, "such that its expectation is known")
    return mean


def certain(value: Any, name: str) -> Tensor:
    if isinstance(value, Uncertain):
        raise NotConjugateError(f"its {name} depends on a latent")
    return torch.as_tensor(value)
