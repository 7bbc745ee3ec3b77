"""Components of a mixture that are empty, or that say the same as others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import Structure, draw_latents, squeezed

_DRAWS = 200
_EMPTY, _ALIKE = 0.5, 1.0
"""Elements that a component has on average; standard deviations between two."""


def component_remarks(job: Job) -> tuple[str, ...]:
    """A line for each discrete latent with components that are empty or alike.

    A component is empty where it has less than half an element on average. Two are alike where in every
    latent of the plate over the components their means are nearer than one standard deviation of the
    difference. Found from draws, components as the guide numbers them: one that confuses them in its
    draws makes them look alike. To be called inside the fitted parameters.

    Args:
        job: the fitted model and guide.
    """
    pair = job.pair(next(job.source.sequence()))
    with job.handler(next(job.source.sequence())), torch.no_grad():
        structure = structure_of(pair)
        labels = _labels(structure)
        if not labels:
            return ()
        drawn = draw_latents(structure, pair, _DRAWS)
    draws = {
        name: squeezed(structure, name, drawn[name]) for name in drawn if name in structure.sites
    }
    lines = []
    for name, size in labels.items():
        every = draws[name].long().reshape(-1)
        counts = torch.bincount(every, minlength=size)[:size] / _DRAWS
        full = [k for k in range(size) if counts[k] >= _EMPTY]
        if len(full) < size:
            empty = [str(k) for k in range(size) if k not in full]
            lines.append(
                f"site '{name}': {len(empty)} of {size} components are empty ({_list(empty)})"
            )
        alike = _alike(structure, draws, size, full)
        if alike:
            lines.append(f"site '{name}': components say the same as others ({_list(alike)})")
    return tuple(lines)


def _labels(structure: Structure) -> dict[str, int]:
    """The number of values of each discrete latent inside a plate, that counts from 0."""
    found = {}
    for name in structure.of_kind("latent", "marginalized"):
        site = structure.sites[name]
        if site.enumerable and site.plates and site.support_size > 1 and not site.event_dim:
            found[name] = site.support_size
    return found


def _alike(
    structure: Structure, draws: Mapping[str, Tensor], size: int, full: list[int]
) -> list[str]:
    """Pairs of components that no latent tells apart."""
    sites = structure.sites
    continuous = [n for n in structure.of_kind("latent") if sites[n].dtype.is_floating_point]
    around = {plate: structure.plates[plate] for n in continuous for plate in sites[n].plates}
    plates = [p.name for p in around.values() if p.size == p.full_size == size]
    if len(plates) != 1:
        return []  # which plate is over the components is in doubt
    own = [name for name in continuous if plates[0] in sites[name].plates]
    apart = torch.zeros(size, size, dtype=torch.float64)
    for name in own:
        place = 1 + sites[name].plates.index(plates[0])
        values = draws[name].double().movedim(place, 1).reshape(_DRAWS, size, -1)
        means, variances = values.mean(0), values.var(0)
        spread = (variances[:, None] + variances[None]).sqrt().clamp(min=1e-300)
        apart = torch.maximum(apart, ((means[:, None] - means[None]).abs() / spread).amax(2).cpu())
    return [f"{a} and {b}" for a in full for b in full if a < b and apart[a, b] < _ALIKE]


def _list(names: list[str]) -> str:
    """At most five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
