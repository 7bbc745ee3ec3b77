"""Tensors by plate name: from Pyro's positional dimensions to ``[num_particles, *plates]``.

Pyro gives a plate a dimension counted from the right, and two plates may share one. The rest of the
engine meets plates by name only, so that factors of a model and a guide that lay out their plates
differently still add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import ImproperUniform, Independent, MaskedDistribution
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppl_vi.errors import ModelError

PARTICLES = "num_particles"
"""Name of the outermost plate that holds the particles."""


def plate_frames(site: Mapping[str, Any]) -> list[Any]:
    """The vectorised plates around a traced site, outermost dimension first, without the particles."""
    frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]
    return sorted(frames, key=lambda frame: frame.dim)


def select_dims(tensor: Tensor, dims: Sequence[int], event_dim: int, site: str) -> Tensor:
    """Keep the batch dimensions ``dims`` (negative, counted left of the event) and the event.

    Raises:
        ModelError: another batch dimension has more than one element, so no plate declares it.
    """
    batch = tensor.dim() - event_dim
    depth = max([batch, *(-dim for dim in dims)])
    if depth > batch:
        tensor = tensor.reshape((1,) * (depth - batch) + tensor.shape)
    keep = [depth + dim for dim in dims]
    rest = [dim for dim in range(depth) if dim not in keep]
    if any(tensor.shape[dim] != 1 for dim in rest):
        raise ModelError(
            f"site '{site}': its batch shape {tuple(tensor.shape[:depth])} has dimensions that no "
            f"pyro.plate declares. Put the site in a plate, or make the dimensions part of the "
            f"event with .to_event()."
        )
    events = list(range(depth, tensor.dim()))
    shape = [tensor.shape[dim] for dim in keep + events]
    return tensor.permute(keep + rest + events).reshape(shape)


def align(tensor: Tensor, plates: Sequence[str], target: Sequence[str]) -> Tensor:
    """Reduce ``[num_particles, *plates]`` to the plates of ``target`` by name.

    Plates that the target lacks are summed out; plates that only the target has become dimensions
    of size 1, so the result broadcasts against ``[num_particles, *target]``.
    """
    extra = [1 + i for i, plate in enumerate(plates) if plate not in target]
    if extra:
        tensor = tensor.sum(dim=extra)
    kept = [plate for plate in plates if plate in target]
    order = [kept.index(plate) for plate in target if plate in kept]
    tensor = tensor.permute([0, *(1 + i for i in order)])
    shape = iter(tensor.shape[1:])
    return tensor.reshape([tensor.shape[0], *(next(shape) if p in kept else 1 for p in target)])


def unmasked(distribution: Any) -> Any:
    """The distribution without ``.mask()``, which may stand inside ``.to_event()``."""
    if isinstance(distribution, MaskedDistribution):
        return unmasked(distribution.base_dist)
    if isinstance(distribution, Independent):
        base = unmasked(distribution.base_dist)
        if base is not distribution.base_dist:
            return base.to_event(distribution.reinterpreted_batch_ndims)
    return distribution


def innermost(distribution: Any) -> Any:
    """The distribution inside ``.expand()``, ``.to_event()`` and ``.mask()``."""
    while type(distribution).__name__ in (
        "ExpandedDistribution",
        "Independent",
        "MaskedDistribution",
    ):
        distribution = distribution.base_dist
    return distribution


def unexpanded(distribution: Any) -> Any:
    """The distribution inside ``.expand()``, whose batch shape may be smaller."""
    expanded = type(distribution).__name__ == "ExpandedDistribution"
    return unexpanded(distribution.base_dist) if expanded else distribution


def is_improper(distribution: Any) -> bool:
    """Whether it is Pyro's flat prior, which has no draws."""
    return isinstance(innermost(distribution), ImproperUniform)


def is_real(support: Any) -> bool:
    """Whether all real numbers are in the support."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def feasible_value(distribution: Any) -> Tensor:
    """``[*batch, *event]``: some value on the support of a continuous distribution."""
    to_support = transform_to(distribution.support)
    value: Tensor = to_support(torch.zeros(to_support.inverse_shape(distribution.shape())))
    return value


def joint_support(distribution: Any) -> Tensor:
    """``[states, *event]``: every value of an event whose elements have a finite support."""
    base = innermost(distribution)
    values = base.enumerate_support(expand=False)
    values = values.reshape(len(values), *base.event_shape)
    event = distribution.event_shape
    elements = event.numel() // max(1, base.event_shape.numel())
    index = torch.cartesian_prod(*[torch.arange(len(values), device=values.device)] * elements)
    states: Tensor = values[index.reshape(-1, elements)].reshape(-1, *event)
    return states


def expanded_parameter(distribution: Any, name: str) -> Tensor:
    """``[*batch, *event, ...]`` of a parameter of the distribution inside ``.expand()`` and others."""
    base = innermost(distribution)
    elements = distribution.event_dim - base.event_dim
    shape = distribution.batch_shape + distribution.event_shape[:elements]
    tensor: Tensor = getattr(base, name)
    return tensor.expand([*shape, *tensor.shape[len(base.batch_shape) :]])
