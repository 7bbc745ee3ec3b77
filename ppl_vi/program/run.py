"""One run of a guide and a model on a batch of particles: factors and latents, by plate name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vi.program.layout import align, plate_frames, select_dims
from ppl_vi.program.marginalization import marginal_factors
from ppl_vi.program.messengers import Draw
from ppl_vi.program.particles import guide_particles, model_particles
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair, factor_sites, subsampled_rows


@dataclass(frozen=True)
class Factor:
    """One factor of the model or the guide.

    Attributes:
        origin: ``"model"`` factors add to the log-weight, ``"guide"`` factors subtract from it.
        sites: the sites that it stands for: one, or a group with discrete latents summed out.
        log_prob: ``[num_particles, *plates]``, masked, not scaled.
        scale: N / B of subsampled plates, times any ``poutine.scale``.
        plates: names of the plates in ``log_prob``.
    """

    origin: Literal["model", "guide"]
    sites: tuple[str, ...]
    log_prob: Tensor
    scale: Tensor | float
    plates: tuple[str, ...]

    @property
    def signed(self) -> Tensor:
        """``[num_particles, *plates]``: what it adds to the log-weight, scaled."""
        return self.log_prob * (self.scale if self.origin == "model" else -self.scale)


@dataclass(frozen=True)
class Latent:
    """The draws of one site of the guide.

    Attributes:
        value: ``[num_particles, *plates, *event]``.
        log_q: ``[num_particles, *plates]``, neither scaled nor masked, so that it is a score.
        plates: names of its plates.
    """

    value: Tensor
    log_q: Tensor
    plates: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """All factors and latents of a batch of particles."""

    num_particles: int
    factors: tuple[Factor, ...]
    latents: Mapping[str, Latent]

    def log_weights(self) -> Tensor:
        """``[num_particles]``: log p(x, z) - log q(z) of each particle."""
        return self.summed(self.factors, ()).reshape(self.num_particles)

    def summed(self, factors: Sequence[Factor], plates: Sequence[str]) -> Tensor:
        """``[num_particles, *plates]``: the factors' signed sum, reduced to the plates by name."""
        reduced = [align(factor.signed, factor.plates, plates) for factor in factors]
        total: Tensor = sum(reduced[1:], start=reduced[0])
        return total


def run(structure: Structure, pair: Pair, draw: Draw, num_particles: int) -> Run:
    """Draw ``num_particles`` from the guide and weigh them under the model.

    Args:
        structure: of this pair, as ``inspect`` found it.
        pair: the model, the guide and their arguments.
        draw: how each site of the guide is drawn, ``draw(name, distribution)``.
        num_particles: S.
    """
    # Arguments are checked once, by ``inspect``; here it would cost time and break ``torch.vmap``.
    with pyro.validation_enabled(False):
        guide = run_guide(structure, pair, draw, num_particles)
        factors = run_model(structure, pair, guide.values, num_particles)
    return Run(num_particles, (*factors, *guide.factors), guide.latents)


class GuideRun(NamedTuple):
    """The guide's part of a run.

    ``values`` are what the model is handed by name: draws, ``[num_particles, *shape]`` with the
    site's shape in a single run, and row numbers of plates.
    """

    values: dict[str, Tensor]
    factors: tuple[Factor, ...]
    latents: dict[str, Latent]


def run_guide(
    structure: Structure,
    pair: Pair,
    draw: Draw,
    num_particles: int,
    rows: Mapping[str, Tensor] | None = None,
) -> GuideRun:
    """Draw a batch of particles from the guide; ``rows`` are those to reuse, by plate."""
    trace = guide_particles(structure, pair, draw, num_particles, rows)
    sites = factor_sites(trace)
    drawn = {
        name: sites[name]["value"].reshape(num_particles, *structure.sites[name].shape)
        for name in structure.drawn
    }
    dim = structure.particle_dim
    factors = tuple(_factor("guide", site, dim) for site in sites.values())
    latents = {name: _latent(sites[name], dim) for name in structure.drawn}
    return GuideRun({**subsampled_rows(trace), **drawn}, factors, latents)


def run_model(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_particles: int
) -> tuple[Factor, ...]:
    """The model's factors on a batch of particles, discrete latents that the guide lacks summed out.

    Args:
        structure: of this pair.
        pair: the model, the guide and their arguments.
        values: ``[num_particles, *shape]`` by site, and row numbers by plate.
        num_particles: S.
    """
    trace = model_particles(structure, pair, values, num_particles)
    groups = marginal_factors(trace, structure.marginalized, num_particles)
    grouped = {name for group in groups for name in group.sites}
    single = [site for name, site in factor_sites(trace).items() if name not in grouped]
    marginal = tuple(Factor("model", *group) for group in groups)
    return (*marginal, *(_factor("model", site, structure.particle_dim) for site in single))


def _factor(origin: Literal["model", "guide"], site: Mapping[str, Any], dim: int) -> Factor:
    log_prob, scale = site["unscaled_log_prob"], site["scale"]
    if isinstance(scale, Tensor) and scale.dim():
        scale = _by_plate(scale.expand(log_prob.shape), site, dim)
    log_prob = _by_plate(scale_and_mask(log_prob, mask=site["mask"]), site, dim)
    plates = tuple(frame.name for frame in plate_frames(site))
    return Factor(origin, (site["name"],), log_prob, scale, plates)


def _latent(site: Mapping[str, Any], dim: int) -> Latent:
    log_q = site.get("log_q", site["unscaled_log_prob"])
    value = _by_plate(site["value"], site, dim, site["fn"].event_dim)
    plates = tuple(frame.name for frame in plate_frames(site))
    return Latent(value, _by_plate(log_q, site, dim), plates)


def _by_plate(tensor: Tensor, site: Mapping[str, Any], dim: int, event_dim: int = 0) -> Tensor:
    """``[num_particles, *plates, *event]`` of a traced tensor."""
    dims = [dim, *(frame.dim for frame in plate_frames(site))]
    return select_dims(tensor, dims, event_dim, site["name"])
