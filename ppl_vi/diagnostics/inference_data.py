"""Data for ArviZ, of either generation: 0.2x (``InferenceData``) and 1.x (``DataTree``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = ("chain", "draw")


class Variable(NamedTuple):
    """An array with the names of its dimensions.

    Attributes:
        dims: a name for each dimension; those of draws are ``"chain"`` and ``"draw"``.
        values: the array.
    """

    dims: tuple[str, ...]
    values: np.ndarray[Any, Any]

    @property
    def own(self) -> dict[str, int]:
        """The sizes of its dimensions by name, without those of draws."""
        sizes = zip(self.dims, self.values.shape, strict=True)
        return {name: size for name, size in sizes if name not in _DRAWS}


Groups = Mapping[str, Mapping[str, Variable]]


def inference_data(
    groups: Groups, coords: Mapping[str, Sequence[Any]], attributes: Mapping[str, Any]
) -> Any:
    """ArviZ data from arrays with named dimensions.

    Both generations read the same xarray data sets, and differ in what holds these together.

    Args:
        groups: by name of the group, variables by name; a group without variables is left out.
        coords: labels of dimensions; the others are numbered from 0.
        attributes: of each group.

    Returns:
        ``arviz.InferenceData``, or an ``xarray.DataTree`` with ArviZ 1.x.

    Raises:
        ValueError: a dimension has two sizes, or labels do not fit it; the message names the site.
    """
    import arviz as az  # it takes seconds, and not every fit needs it
    import xarray as xr

    filled = {group: variables for group, variables in groups.items() if variables}
    labels = _labels(filled, coords)
    datasets = {
        group: xr.Dataset(
            {name: (variable.dims, variable.values) for name, variable in variables.items()},
            coords={
                dim: labels[dim]
                for variable in variables.values()
                for dim in variable.dims
                if dim in labels
            },
            attrs={**attributes, "arviz_version": az.__version__},
        )
        for group, variables in filled.items()
    }
    return xr.DataTree.from_dict(datasets) if _is_new(az) else az.InferenceData(**datasets)


def posterior_table(groups: Groups) -> pd.DataFrame:
    """Means, standard deviations and highest-density intervals of the posterior group."""
    import arviz as az

    if not any(groups.values()):  # the columns alone
        return posterior_table({"posterior": {"none": Variable(_DRAWS, np.zeros((1, 4)))}}).iloc[:0]
    settings: dict[str, Any] = {"kind": "stats"}
    if _is_new(az):  # it has other defaults
        settings |= {"ci_prob": 0.94, "ci_kind": "hdi", "round_to": 3}
    table: pd.DataFrame = az.summary(inference_data(groups, {}, {}), **settings)
    return table


def _is_new(az: Any) -> bool:
    """Whether it is of the generation of ``DataTree``."""
    return "ci_prob" in inspect.signature(az.summary).parameters


def _labels(groups: Groups, coords: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The labels of every dimension."""
    every = [(n, v) for variables in groups.values() for n, v in variables.items()]
    sizes: dict[str, tuple[int, str, tuple[int, ...]]] = {}
    for name, variable in every:
        shape = tuple(variable.own.values())
        for dim, size in variable.own.items():
            known, other, its_shape = sizes.setdefault(dim, (size, name, shape))
            if known != size:
                raise ValueError(
                    f"to_arviz: dims: dimension '{dim}' has {known} elements in site '{other}' of "
                    f"shape {its_shape}, but {size} in site '{name}' of shape {shape}. Give it "
                    f"another name in one of them."
                )
    labels = {dim: np.arange(size) for dim, (size, _, _) in sizes.items()}
    labels |= {dim: np.arange(v.values.shape[v.dims.index(dim)])
               for _, v in every for dim in _DRAWS if dim in v.dims}  # fmt: skip
    for dim, given in coords.items():
        if dim not in sizes:
            raise ValueError(
                f"to_arviz: coords: no site has a dimension '{dim}' (there are "
                f"{', '.join(repr(name) for name in sizes) or 'none'}). Correct the name, or name the "
                f"dimension of a site with dims."
            )
        size, name, shape = sizes[dim]
        found = np.asarray(given)
        if found.shape != (size,):
            raise ValueError(
                f"to_arviz: coords: dimension '{dim}' has {size} elements (site '{name}' of shape "
                f"{shape}), but {found.size if found.ndim else 'no'} labels were given. Give one label "
                f"for each element."
            )
        labels[dim] = found
    return labels
