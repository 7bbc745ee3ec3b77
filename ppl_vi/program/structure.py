"""What a model and its guide are made of: sites, plates, and how particles run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import constraints

Kind = Literal["latent", "auxiliary", "marginalized", "observed", "deterministic"]


@dataclass(frozen=True)
class Plate:
    """A plate: ``size`` elements in this run, out of ``full_size``; ``dim`` counts from the right."""

    name: str
    dim: int
    size: int
    full_size: int


@dataclass(frozen=True)
class Site:
    """One sample site of a model/guide pair.

    Attributes:
        name: the site's name.
        kind: ``latent`` (drawn in the guide), ``auxiliary`` (in the guide alone, by request),
            ``marginalized`` (discrete, left out of the guide, summed out), ``observed`` or
            ``deterministic`` (``pyro.deterministic``).
        plates: names of its plates, outermost dimension first.
        shape: ``[*plates, *event]`` of one draw.
        event_dim: how many dimensions of ``shape`` belong to the event.
        dtype: of its value.
        support: the constraint on its values: the guide's where the guide draws it.
        distribution: the name of its distribution: the guide's where the guide draws it.
        reparameterizable: the distribution has a pathwise draw.
        enumerable: the support can be listed.
        support_size: how many values one element can take; 0 where they cannot be listed.
        elements: how many independent elements an event has (``.to_event()``).
        fixed: the value is a ``Delta``: nothing random is left to estimate.
        moving_support: a trainable parameter moves the support.
    """

    name: str
    kind: Kind
    plates: tuple[str, ...]
    shape: torch.Size
    event_dim: int
    dtype: torch.dtype
    support: constraints.Constraint
    distribution: str
    reparameterizable: bool
    enumerable: bool
    support_size: int
    elements: int
    fixed: bool
    moving_support: bool

    @property
    def num_states(self) -> int:
        """How many values the whole event can take, at least; 0 where they cannot be listed."""
        return int(self.support_size ** min(self.elements, 64)) if self.support_size else 0


@dataclass(frozen=True)
class Structure:
    """The typed view of a model/guide pair at given shapes.

    Attributes:
        sites: by name, in the order of the model, the guide's auxiliary sites first.
        plates: by name.
        nesting: the depth of the plates, found from the programs.
        guide_particles: how a batch of particles of the guide runs: in an outermost ``plate`` where
            the guide broadcasts and gives each particle what it gets alone, else in a ``loop``.
        model_particles: the same for the model, which may also run under ``torch.vmap``.
    """

    sites: Mapping[str, Site]
    plates: Mapping[str, Plate]
    nesting: int
    guide_particles: Literal["plate", "loop"]
    model_particles: Literal["plate", "vmap", "loop"]

    def of_kind(self, *kinds: Kind) -> tuple[str, ...]:
        """Names of the sites of the given kinds."""
        return tuple(name for name, site in self.sites.items() if site.kind in kinds)

    @property
    def particle_dim(self) -> int:
        """The dimension of the particles, counted from the right of a batch shape."""
        return -self.nesting - 1

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the sites that the guide draws."""
        return self.of_kind("latent", "auxiliary")

    @property
    def marginalized(self) -> tuple[str, ...]:
        """Names of the discrete sites that are summed out."""
        return self.of_kind("marginalized")

    def single(self, values: Mapping[str, Tensor], draw: int = 0) -> dict[str, Tensor]:
        """One draw of each site among a run's values, with the rows of subsampled plates."""
        return {name: v[draw] if name in self.sites else v for name, v in values.items()}

    def row_numbers(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those among a run's values that no site draws: the rows of subsampled plates, by plate."""
        return {name: value for name, value in values.items() if name not in self.sites}
