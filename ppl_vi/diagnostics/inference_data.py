"""Draws for ArviZ, of either generation: 0.2x (``InferenceData``) and 1.x (``DataTree``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ppl_vi.program import Structure

if TYPE_CHECKING:
    import pandas as pd

Groups = Mapping[str, Mapping[str, Tensor]]


def inference_data(groups: Groups, structure: Structure) -> Any:
    """ArviZ data from draws: plates become named dimensions, draws one chain.

    Args:
        groups: by name of the group, tensors by site: ``[num_draws, *plates, *event]``, and
            ``[*plates, *event]`` in ``observed_data``.
        structure: tells the plates of each site.

    Returns:
        ``arviz.InferenceData``, or an ``xarray.DataTree`` with ArviZ 1.x.
    """
    import arviz as az  # it takes seconds, and not every fit needs it

    arrays = {
        group: {
            name: _array(value, drawn=group != "observed_data") for name, value in sites.items()
        }
        for group, sites in groups.items()
        if sites
    }
    dims = {
        name: _dims(structure, name, value.ndim - (group != "observed_data") * 2)
        for group, sites in arrays.items()
        for name, value in sites.items()
        if group != "log_likelihood"
    }
    used = {plate for names in dims.values() for plate in names if plate in structure.plates}
    coords = {plate: np.arange(structure.plates[plate].size) for plate in sorted(used)}
    if "data" in inspect.signature(az.from_dict).parameters:
        return az.from_dict(arrays, coords=coords, dims=dims)
    return az.from_dict(**arrays, coords=coords, dims=dims)


def posterior_table(data: Any) -> pd.DataFrame:
    """Means, standard deviations and highest-density intervals of the posterior group."""
    import arviz as az

    settings: dict[str, Any] = {"kind": "stats"}
    if "ci_prob" in inspect.signature(az.summary).parameters:  # ArviZ 1.x has other defaults
        settings |= {"ci_prob": 0.94, "ci_kind": "hdi", "round_to": 3}
    table: pd.DataFrame = az.summary(data, **settings)
    return table


def _array(value: Tensor, drawn: bool) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().numpy()
    return array[None] if drawn else array


def _dims(structure: Structure, name: str, count: int) -> list[str]:
    plates = list(structure.sites[name].plates)
    return plates + [f"{name}_dim_{i}" for i in range(count - len(plates))]
