"""Do the sites of a program fit their plates, and the observed values their sites?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.errors import DataError, GuideError, ModelError
from ppl_vi.program.layout import innermost, plate_frames
from ppl_vi.program.shape_lessons import undeclared

_LABELS = ("Categorical", "OrderedLogistic", "IndexedCategorical")
"""Families whose values are labels of categories, not amounts."""


def check_declared(sites: Mapping[str, Any], what: str) -> None:
    """Raise an error where a dimension of a site's batch shape belongs to no plate.

    Args:
        sites: of a trace without enumeration.
        what: ``"the model"`` or ``"the guide"``.

    Raises:
        ModelError, GuideError: ``.to_event()`` or a plate was forgotten.
    """
    error = GuideError if what == "the guide" else ModelError
    for name, site in sites.items():
        shape = tuple(site["fn"].batch_shape)
        own = {frame.dim for frame in plate_frames(site)}
        rest = [d for d in range(-len(shape), 0) if shape[d] != 1 and d not in own]
        if rest and not site["infer"].get("_deterministic"):
            raise error(undeclared(what, name, family_of_site(site), shape, rest))


def check_observed(model_sites: Mapping[str, Any]) -> None:
    """Raise a DataError where observed values cannot come from their site."""
    for name, site in model_sites.items():
        distribution, value = site["fn"], site["value"]
        if not site["is_observed"] or isinstance(distribution, (Delta, Unit)):
            continue
        if site["infer"].get("_deterministic"):
            continue
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise DataError(
                f"site '{name}': the observed values are a {kind}, not a tensor. Pass "
                f"torch.tensor(values)."
            )
        _check_shape(name, site)
        _check_kind(name, site)
        own_mask = distribution._mask if isinstance(distribution, MaskedDistribution) else None
        if not inside_support(distribution.support, value, site["mask"], own_mask):
            raise DataError(
                f"site '{name}': some observed values are NaN, infinite or outside the support of "
                f"{family_of_site(site)} ({distribution.support}): they go from "
                f"{_range(value)}. Correct the "
                f"data, or take a distribution with such values."
            )


def _check_shape(name: str, site: Mapping[str, Any]) -> None:
    distribution = site["fn"]
    expected, found = tuple(distribution.shape()), tuple(site["value"].shape)
    if not _broadcasts_to(found, expected):
        raise DataError(
            f"site '{name}': the observed values have shape {found}, but the distribution "
            f"({family_of_site(site)}) has shape {expected}. {_shape_remedy(site, found, expected)}"
        )


def _shape_remedy(
    site: Mapping[str, Any], found: tuple[int, ...], expected: tuple[int, ...]
) -> str:
    frames, batch = plate_frames(site), tuple(site["fn"].batch_shape)
    event = expected[len(batch) :]
    if found[-1:] == (1,) and found[:-1] == expected:
        return (
            "The values are a column: pass them without their last dimension, values.squeeze(-1)."
        )
    if family_of_site(site).startswith("OneHotCategorical") and found == batch:
        return "The values are labels: use dist.Categorical, or torch.nn.functional.one_hot(labels, K)."
    extra = len(found) - len(expected)
    if extra > 0 and batch and found[: len(batch)] == batch and not event:
        sizes = ", ".join(map(str, found))
        return (
            f"If the last {extra} dimensions of the values belong to one observation, give the "
            f"distribution that shape with .expand([{sizes}]).to_event({extra})."
            if extra > 1
            else f"If the last dimension of the values belongs to one observation, give the "
            f"distribution that shape with .expand([{sizes}]).to_event(1)."
        )
    if extra > 0 and found[extra:] == expected:
        sizes = " and ".join(
            f"pyro.plate('{site['name']}_plate', {size}, dim={k - extra})"
            for k, size in enumerate(found[:extra], -len(batch))
        )
        return f"Put the site in {sizes}: every dimension over observations needs a plate."
    for frame in frames:
        place = frame.dim - len(event)
        if len(found) >= -place and found[place] not in (frame.size, 1):
            return (
                f"Plate '{frame.name}' has {frame.size} elements, the values {found[place]}: "
                f"give the plate "
                f"the length of the data, or pass data of equal lengths."
            )
    if event and len(found) == len(expected) and found[: len(batch)] == batch:
        return (
            f"The distribution has {event} entries for each observation, the values "
            f"{found[len(batch) :]}: give its parameters that shape before .to_event()."
        )
    return (
        "Pass data of equal lengths, and declare all batch dimensions by pyro.plate or .to_event()."
    )


def _check_kind(name: str, site: Mapping[str, Any]) -> None:
    distribution, value, family = site["fn"], site["value"], family_of_site(site)
    if not distribution.support.is_discrete:
        if not (value.is_floating_point() or value.is_complex()):
            raise DataError(
                f"site '{name}': the observed values are {value.dtype}, but {family} is continuous. "
                f"Pass floating-point data, for instance data.float()."
            )
        return
    if family in _LABELS and value.is_floating_point():
        raise DataError(
            f"site '{name}': the observed labels are {value.dtype}, but {family} takes whole numbers. "
            f"Pass integers, for instance labels.long()."
        )
    if not value.is_floating_point():
        try:
            distribution.log_prob(value)
        except (RuntimeError, TypeError):
            raise DataError(
                f"site '{name}': the observed values are {value.dtype}, of which torch has no density "
                f"under {family}. Pass them as floats, values.float()."
            ) from None
        except ValueError:
            return  # outside the support, which is told elsewhere


def _range(value: Tensor) -> str:
    finite = value[torch.isfinite(value)]
    found = (
        f"{finite.min().item():.4g} to {finite.max().item():.4g}" if finite.numel() else "nothing"
    )
    count = value.numel() - finite.numel()
    return f"{found}, with {count} NaN or infinite" if count else found


def inside_support(support: Any, value: Tensor, *masks: Tensor | bool | None) -> bool:
    """Whether all values are finite and in the support, but for those that are masked away."""
    if support is constraints.dependent or any(mask is False for mask in masks):
        return True
    try:
        inside = support.check(value)  # an infinite number is real to it
        finite = torch.isfinite(value)
        if support.event_dim:
            finite = finite.flatten(-support.event_dim).all(-1)
        inside = inside & finite
    except NotImplementedError:
        return True
    for mask in masks:
        if isinstance(mask, Tensor):
            inside = inside | ~mask
    return bool(inside.all())


def _broadcasts_to(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    try:
        return tuple(broadcast_shape(found, expected)) == expected
    except ValueError:
        return False


def family_of_site(site: Mapping[str, Any]) -> str:
    """The name of a site's distribution, wrappers aside."""
    return type(innermost(site["fn"])).__name__
