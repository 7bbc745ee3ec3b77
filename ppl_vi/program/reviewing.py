"""A first look at a model by itself, before there is a guide: what is wrong in it is told as "
"its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_vi.errors import ModelError
from ppl_vi.program.batches import traced_alone
from ppl_vi.program.independence import suspect_dependence
from ppl_vi.program.layout import is_improper, plate_frames
from ppl_vi.program.model_checks import check_declared, check_observed, family_of_site
from ppl_vi.program.scene import Call
from ppl_vi.program.tracing import sample_sites


def review(call: Call, values: Mapping[str, Tensor], num_rows: int | None, may_fail: bool) -> None:
    """Run the model once on draws of its prior, and look at its sites.

    Args:
        call: of the model.
        values: where sites and parameters are to start, by name.
        num_rows: of the whole data set.
        may_fail: whether the model may refuse a draw of its prior, since it will never be given one.

    Raises:
        ModelError: the model fails, has a dimension that no plate declares, or a starting value does
            not fit its site.
        DataError: observed values cannot come from their site.
    """
    try:
        with warnings.catch_warnings():  # draws of a prior are wider than any that a fit will see
            warnings.simplefilter("ignore")
            sites = sample_sites(traced_alone(call))
    except ModelError:
        if may_fail:
            return
        raise
    check_declared(sites, "the model")
    check_observed(sites)
    for name in values.keys() & sites.keys():
        _check_start(name, values[name], sites[name])
    _suspect_unobserved(sites, call)
    _suspect_precision(sites, call)
    suspect_dependence(call)
    _suspect_scale(sites, num_rows)


def _check_start(name: str, value: Tensor, site: Mapping[str, Any]) -> None:
    distribution, expected = site["fn"], tuple(site["value"].shape)
    if any(frame.full_size != frame.size for frame in plate_frames(site)):
        return  # one value for each of all rows
    if tuple(value.shape) != expected:
        raise ModelError(
            f"initial_values: '{name}' has shape {tuple(value.shape)}, but the site has "
            f"{expected}. Give "
            f"one value for each of its entries."
        )
    if distribution.support.is_discrete or is_improper(distribution):
        return
    try:
        free = biject_to(distribution.support).inv(value.to(site["value"].dtype))
    except NotImplementedError:
        return
    if not torch.isfinite(free).all():
        raise ModelError(
            f"initial_values: '{name}' starts outside the support of {family_of_site(site)} "
            f"({distribution.support}), or on its edge, where no step could leave it. Start it inside."
        )


def _suspect_unobserved(sites: Mapping[str, Any], call: Call) -> None:
    """A latent that looks like the data, where no site is observed: obs= was forgotten."""
    if any(s["is_observed"] and not s["infer"].get("_deterministic") for s in sites.values()):
        return
    for name, site in sites.items():
        for given, tensor in call.tensors.items():
            rows = tensor.dim() > 0 and len(tensor) in {f.size for f in plate_frames(site)}
            alike = tensor.dim() > 0 and tensor.shape == site["value"].shape
            if rows or alike or name == given:
                warnings.warn(
                    f"the model is given data ('{given}'), but observes none of its sites, so that the "
                    f"fit returns its prior. Was obs= forgotten at site '{name}', as in "
                    f"pyro.sample('{name}', distribution, obs={given})?",
                    stacklevel=2,
                )
                return


def _suspect_precision(sites: Mapping[str, Any], call: Call) -> None:
    """float64 data, of which float32 latents keep but half of the digits."""
    data = [name for name, tensor in call.tensors.items() if tensor.dtype == torch.float64]
    latents = [
        name
        for name, site in sites.items()
        if not site["is_observed"] and site["value"].dtype == torch.float32
    ]
    if data and latents:
        warnings.warn(
            f"argument '{data[0]}' is torch.float64, but site '{latents[0]}' and its parameters are "
            f"torch.float32, so that the fit is no more exact than float32. Pass "
            f"{data[0]}.float(), or call "
            f"torch.set_default_dtype(torch.float64) before the model and the guide are made.",
            stacklevel=2,
        )


def _suspect_scale(sites: Mapping[str, Any], num_rows: int | None) -> None:
    """All rows that there are, counted for more: a batch that was passed as the data."""
    for name, site in sites.items():
        for frame in plate_frames(site):
            full = frame.full_size or frame.size
            if site["is_observed"] and frame.size == num_rows and full > frame.size:
                warnings.warn(
                    f"site '{name}': plate '{frame.name}' has size {full}, so that each of the "
                    f"{num_rows} "
                    f"rows of the data counts {full / frame.size:.4g} times. Pass all {full} rows with "
                    f"batch_size={num_rows}, or give the plate the size of the data, len(data).",
                    stacklevel=2,
                )
                return
