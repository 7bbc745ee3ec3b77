"""One run of a guide and a model on a batch of particles: factors and latents, by plate name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyro
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vi.program.layout import align, expanded_parameter, plate_frames, select_dims, unmasked
from ppl_vi.program.marginalization import marginal_factors
from ppl_vi.program.messengers import Draw
from ppl_vi.program.particles import guide_particles, model_particles
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair, factor_sites, subsampled_rows


@dataclass(frozen=True)
class Batched:
    """A site's distribution as a whole batch of particles ran it.

    Attributes:
        distribution: its batch shape has the particles leftmost.
        dims: of the particles and of its plates, counted from the right of the batch shape.
        site: its name.
        masked: some of its elements may be masked away.
        value: the draws, in the distribution's own layout.
    """

    distribution: Any
    dims: tuple[int, ...]
    site: str
    masked: bool
    value: Tensor

    def parameter(self, name: str) -> Tensor:
        """``[num_particles, *plates, *event, ...]`` of a parameter, its gradient attached."""
        tensor = expanded_parameter(self.distribution, name)
        return self.place(tensor, tensor.dim() - len(self.distribution.batch_shape))

    def place(self, tensor: Tensor, event_dim: int = 0) -> Tensor:
        """``[num_particles, *plates, *event]`` of a tensor with the distribution's batch shape."""
        return select_dims(tensor, self.dims, event_dim, self.site)


@dataclass(frozen=True)
class Factor:
    """One factor of the model or the guide.

    Attributes:
        origin: ``"model"`` factors add to the log-weight, ``"guide"`` factors subtract from it.
        sites: the sites that it stands for: one, or a group with discrete latents summed out.
        log_prob: ``[num_particles, *plates]``, masked, not scaled.
        scale: N / B of subsampled plates, times any ``poutine.scale``.
        plates: names of the plates in ``log_prob``.
        batched: the site's distribution; ``None`` for groups, and where particles did not run in a
            plate.
    """

    origin: Literal["model", "guide"]
    sites: tuple[str, ...]
    log_prob: Tensor
    scale: Tensor | float
    plates: tuple[str, ...]
    batched: Batched | None = None

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
        batched: its distribution; ``None`` where particles did not run in a plate.
    """

    value: Tensor
    log_q: Tensor
    plates: tuple[str, ...]
    batched: Batched | None = None


@dataclass(frozen=True)
class Run:
    """All factors and latents of a batch of particles, and the guide's row numbers by plate."""

    num_particles: int
    factors: tuple[Factor, ...]
    latents: Mapping[str, Latent]
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def log_weights(self) -> Tensor:
        """``[num_particles]``: log p(x, z) - log q(z) of each particle."""
        return self.summed(self.factors, ()).reshape(self.num_particles)

    def summed(self, factors: Sequence[Factor], plates: Sequence[str]) -> Tensor:
        """``[num_particles, *plates]``: the factors' signed sum, reduced to the plates by name."""
        reduced = [align(factor.signed, factor.plates, plates) for factor in factors]
        total: Tensor = sum(reduced[1:], start=reduced[0])
        return total


def run(
    structure: Structure,
    pair: Pair,
    draw: Draw,
    num_particles: int,
    rows: Mapping[str, Tensor] | None = None,
) -> Run:
    """Draw ``num_particles`` from the guide and weigh them under the model.

    Args:
        structure: of this pair, as ``inspect`` found it.
        pair: the model, the guide and their arguments.
        draw: how each site of the guide is drawn, ``draw(name, distribution)``.
        num_particles: S.
        rows: row numbers to reuse in the guide's subsampled plates, by plate.
    """
    guide = run_guide(structure, pair, draw, num_particles, rows)
    factors = run_model(structure, pair, guide.values, num_particles)
    rows = structure.row_numbers(guide.values)
    return Run(num_particles, (*factors, *guide.factors), guide.latents, rows)


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
    # Arguments are checked once, by ``inspect``; here it would cost time and break ``torch.vmap``.
    with pyro.validation_enabled(False):
        trace = guide_particles(structure, pair, draw, num_particles, rows)
        sites = factor_sites(trace)
    drawn = {
        name: sites[name]["value"].reshape(num_particles, *structure.sites[name].shape)
        for name in structure.drawn
    }
    dim, whole = structure.particle_dim, structure.guide_particles == "plate"
    factors = tuple(_factor("guide", site, dim, whole) for site in sites.values())
    latents = {name: _latent(sites[name], dim, whole) for name in structure.drawn}
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
    with pyro.validation_enabled(False):
        trace = model_particles(structure, pair, values, num_particles)
        groups = marginal_factors(trace, structure.marginalized, num_particles)
    grouped = {name for group in groups for name in group.sites}
    single = [site for name, site in factor_sites(trace).items() if name not in grouped]
    marginal = tuple(Factor("model", *group) for group in groups)
    dim, whole = structure.particle_dim, structure.model_particles == "plate"
    return (*marginal, *(_factor("model", site, dim, whole) for site in single))


def _factor(
    origin: Literal["model", "guide"], site: Mapping[str, Any], dim: int, whole: bool
) -> Factor:
    log_prob, scale = site["unscaled_log_prob"], site["scale"]
    if isinstance(scale, Tensor) and scale.dim():
        scale = _by_plate(scale.expand(log_prob.shape), site, dim)
    log_prob = _by_plate(scale_and_mask(log_prob, mask=site["mask"]), site, dim)
    plates = tuple(frame.name for frame in plate_frames(site))
    batched = _batched(site, dim) if whole else None
    return Factor(origin, (site["name"],), log_prob, scale, plates, batched)


def _latent(site: Mapping[str, Any], dim: int, whole: bool) -> Latent:
    log_q = site.get("log_q", site["unscaled_log_prob"])
    value = _by_plate(site["value"], site, dim, site["fn"].event_dim)
    plates = tuple(frame.name for frame in plate_frames(site))
    batched = _batched(site, dim) if whole else None
    return Latent(value, _by_plate(log_q, site, dim), plates, batched)


def _batched(site: Mapping[str, Any], dim: int) -> Batched:
    masked = site["mask"] is not None or unmasked(site["fn"]) is not site["fn"]
    return Batched(unmasked(site["fn"]), _dims(site, dim), site["name"], masked, site["value"])


def _by_plate(tensor: Tensor, site: Mapping[str, Any], dim: int, event_dim: int = 0) -> Tensor:
    """``[num_particles, *plates, *event]`` of a traced tensor."""
    return select_dims(tensor, _dims(site, dim), event_dim, site["name"])


def _dims(site: Mapping[str, Any], dim: int) -> tuple[int, ...]:
    return dim, *(frame.dim for frame in plate_frames(site))
