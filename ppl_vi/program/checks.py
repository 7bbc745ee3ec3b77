"""Do the guide and the model agree, and do the data fit? Asked once, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppl_vi.errors import GuideError
from ppl_vi.program.layout import plate_frames
from ppl_vi.program.model_checks import family_of_site, inside_support


def check_guide_sites(guide_sites: Mapping[str, Any], model_sites: Mapping[str, Any]) -> None:
    """Raise a GuideError unless the guide draws exactly the latents of the model."""
    for name, site in guide_sites.items():
        if site["is_observed"] and name not in model_sites:
            continue  # a factor or a deterministic of the guide's own
        if name not in model_sites:
            if not site["infer"].get("is_auxiliary"):
                raise GuideError(
                    f"site '{name}' is drawn in the guide, but the model has no such site. Remove "
                    f"it, correct its name (the model has {_listed(model_sites)}), or mark it as "
                    f"auxiliary with infer={{'is_auxiliary': True}}."
                )
            continue
        if model_sites[name]["is_observed"]:
            raise GuideError(
                f"site '{name}' is drawn in the guide, but it is observed in the model. Remove it "
                f"from the guide."
            )
        if site["is_observed"]:
            raise GuideError(
                f"site '{name}' is observed in the guide. Draw it there instead, and keep obs= for "
                f"the model."
            )
    for name, site in model_sites.items():
        if name in guide_sites or site["is_observed"] or site["fn"].has_enumerate_support:
            continue
        raise GuideError(
            f"site '{name}' is latent in the model, but the guide does not draw it and its "
            f"distribution ({family_of_site(site)}) cannot be summed out. Add "
            f"pyro.sample('{name}', ...) "
            f"to the guide, or observe it in the model."
        )


def check_scaled(guide_sites: Mapping[str, Any], model_sites: Mapping[str, Any]) -> None:
    """Raise a GuideError where rows are scaled up in the model, but not in the guide."""
    for name in guide_sites.keys() & model_sites.keys():
        frames = plate_frames(model_sites[name])
        scaled = {f.name for f in frames if f.full_size and f.full_size > f.size}
        missing = scaled - {frame.name for frame in plate_frames(guide_sites[name])}
        if missing:
            raise GuideError(
                f"site '{name}' stands in the plate '{min(missing)}' over the rows of a batch in the "
                f"model, but not in the guide, so that its log q would not be scaled. Put it in a "
                f"pyro.plate('{min(missing)}', ...) in the guide too."
            )


def check_draw(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raise a GuideError unless the model's site can take what the guide draws for it."""
    _check_shape(name, guide, model)
    _check_plates(name, guide, model)
    _check_support(name, guide, model)


def check_plate(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raise a GuideError unless the model's plate can take the row numbers of the guide's."""
    found, own = len(guide["value"]), model["fn"]
    expected = own.size if own.subsample_size is None else own.subsample_size
    if found != expected and guide["fn"].size != own.size:
        raise GuideError(
            f"plate '{name}' has {found} rows in the guide and {expected} in the model. Use the same "
            f"plates in the guide as in the model."
        )


def _check_shape(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    found, expected = tuple(guide["value"].shape), tuple(model["fn"].shape())
    if found != expected:
        raise GuideError(
            f"site '{name}': the guide draws shape {found}, the model's distribution "
            f"({family_of_site(model)}) has shape {expected}. Use the same plates and event "
            f"dimensions in "
            f"the guide as in the model."
        )


def _check_plates(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """A plate of both has to run over the same dimension of the value."""
    own, wanted = (
        {f.name: f.dim - site["fn"].event_dim for f in plate_frames(site)}
        for site in (guide, model)
    )
    for plate in own.keys() & wanted.keys():
        if own[plate] != wanted[plate]:
            raise GuideError(
                f"site '{name}': plate '{plate}' runs over dimension {own[plate]} of the value in the "
                f"guide, and {wanted[plate]} in the model. Give the plate the same dim= in both."
            )


def _check_support(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    own, wanted = guide["fn"], model["fn"].support
    if isinstance(own, Delta):
        # An enumerated or learned point has no support of its own; where it stands is what counts.
        values = [guide["value"]]
    elif own.support.is_discrete != wanted.is_discrete or (
        model["fn"].has_enumerate_support and not own.has_enumerate_support
    ):
        values = []
    elif own.support.is_discrete:
        values = [*(own.enumerate_support(expand=False) if own.has_enumerate_support else [own()])]
    else:
        values = [guide["value"], *_wide_values(own.support, guide["value"])]
    if not values or not all(inside_support(wanted, value) for value in values):
        raise GuideError(
            f"site '{name}': the guide's distribution ({family_of_site(guide)}, support {own.support}) "
            f"can draw values outside the model's support ({family_of_site(model)}, {wanted}). Use a "
            f"distribution on that support in the guide{_such_as(wanted)}."
        )


def _such_as(support: Any) -> str:
    """Families on a support, where it is a usual one."""
    families = {
        constraints.positive: "LogNormal or Gamma",
        constraints.nonnegative: "LogNormal or Gamma",
        constraints.unit_interval: "Beta",
        constraints.simplex: "Dirichlet",
    }
    return next((f", {own}" for known, own in families.items() if str(known) == str(support)), "")


def _wide_values(support: Any, value: Tensor) -> list[Tensor]:
    """Values spread over a continuous support, far from where the guide starts."""
    try:
        transform = biject_to(support)
    except NotImplementedError:
        return []
    try:  # torch needs half a second for the shape alone, the first time
        shape = transform.inv(value.detach()).shape
    except (ValueError, RuntimeError):
        shape = transform.inverse_shape(value.shape)
    unconstrained = torch.zeros(shape, dtype=value.dtype, device=value.device)
    wide = [transform(unconstrained + shift) for shift in (-4.0, 4.0)]
    return [far for far in wide if inside_support(support, far)]  # rounding may have left it


def _listed(sites: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name, site in sites.items() if not site["is_observed"])
