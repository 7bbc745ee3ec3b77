"""Draws of all latents from the factors of coordinate ascent, in a Pyro guide."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vi.conjugacy import Factor, Family, GaussianFamily, LatentSite, Table, Tensors
from ppl_vi.program import counted


def plates_of(sites: Mapping[str, LatentSite]) -> dict[str, Any]:
    """The plates of latents, made anew, with the rows of a subsample where they have one."""
    plates = {plate.name: plate for site in sites.values() for plate in site.plates}
    return {
        name: pyro.plate(name, p.full_size or p.size, subsample_size=p.size, dim=p.dim)
        for name, p in plates.items()
    }


def draw(
    families: Mapping[str, Factor],
    state: Mapping[str, Tensors],
    tables: Mapping[str, Table],
    sites: Mapping[str, LatentSite],
    plates: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Draw every latent from its factor, inside its plates, and return the draws by site.

    Args:
        families: of the factors of continuous latents.
        state: their natural parameters.
        tables: of the discrete latents.
        sites: all latents.
        plates: around them, by name.
    """
    drawn: dict[str, Tensor] = {}

    def draw_site(name: str, factor: Any) -> Tensor:
        with ExitStack() as stack:
            for plate in sites[name].plates:
                stack.enter_context(plates[plate.name])
            if name in tables:  # its entropy counts as often as its prior
                stack.enter_context(counted(sites[name].times, sites[name].mask))
            drawn[name] = pyro.sample(name, factor)
        return drawn[name]

    def draw_family(family: Family, factor: Any) -> Tensor:
        if isinstance(family, GaussianFamily) and family.jointly:
            vectors = pyro.sample(
                f"{family.site}_jointly",
                factor.to_event(len(factor.batch_shape)),
                infer={"is_auxiliary": True},
            )
            factor = dist.Delta(family.laid_out(vectors), event_dim=family.event_dim)
        return draw_site(family.site, factor)

    for name, own in state.items():
        families[name].draw(own, draw_family)
    numbers: dict[str, Tensor] = {}
    for name, table in tables.items():
        value = draw_site(name, discrete(sites[name], table.given(numbers)))
        numbers[name] = value.argmax(-1) if _is_one_hot(sites[name]) else value.long()
    return drawn


def discrete(site: LatentSite, probabilities: Tensor) -> Any:
    """The factor of a discrete latent, ``[*plates]``, of ``[*plates, states]``."""
    if site.prior == "Bernoulli":
        return dist.Bernoulli(probs=probabilities[..., 1])
    if _is_one_hot(site):
        return dist.OneHotCategorical(probs=probabilities)
    return dist.Categorical(probs=probabilities)


def _is_one_hot(site: LatentSite) -> bool:
    return site.prior.startswith("OneHotCategorical")
