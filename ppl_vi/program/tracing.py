"""Trace a guide, then a model on the guide's draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vi.errors import GuideError, ModelError
from ppl_vi.program.layout import PARTICLES
from ppl_vi.program.messengers import (
    Draw,
    DrawSites,
    Enumeration,
    FeasibleValues,
    KeepFrozen,
    MarkEnumerated,
    ReuseValues,
)
from ppl_vi.program.naming import naming_site
from ppl_vi.program.scene import Call

Program = Callable[..., Any]
"""A Pyro model or guide."""


class Pair(NamedTuple):
    """A model and its guide, with the arguments that both are called with."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def draw_plainly(name: str, distribution: Any) -> Tensor:
    """Draw a site as Pyro would."""
    value: Tensor = distribution()
    return value


def trace_guide(
    pair: Pair,
    draw: Draw,
    num_particles: int | None = None,
    nesting: int = 0,
    rows: Mapping[str, Tensor] | None = None,
) -> Any:
    """Trace the guide; ``draw`` decides how each of its sites is drawn.

    ``rows`` are row numbers to reuse in subsampled plates, by plate.
    """
    call = Call(pair.guide, pair.args, pair.kwargs)
    with naming_site("the guide", GuideError, call), KeepFrozen(), DrawSites(draw):
        with ReuseValues(rows or {}), _particles(num_particles, nesting):
            return poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)


def trace_model(
    pair: Pair,
    values: Mapping[str, Tensor],
    marginalized: Collection[str] = (),
    num_particles: int | None = None,
    nesting: int = 0,
) -> Any:
    """Trace the model on the guide's ``values``, with the sites ``marginalized`` enumerated."""
    # One dimension left of the plates stays free for the particles.
    enumeration = Enumeration(-nesting - 2) if marginalized else nullcontext()
    call = Call(pair.model, pair.args, pair.kwargs, marginalized)
    with naming_site("the model", ModelError, call), KeepFrozen(), FeasibleValues(), enumeration:
        with MarkEnumerated(marginalized), _particles(num_particles, nesting), ReuseValues(values):
            return poutine.trace(pair.model).get_trace(*pair.args, **pair.kwargs)


def _particles(num_particles: int | None, nesting: int) -> AbstractContextManager[Any]:
    """The plate that holds the particles, left of all plates of the program; none for ``None``."""
    if num_particles is None:
        return nullcontext()
    plate: AbstractContextManager[Any] = pyro.plate(PARTICLES, num_particles, dim=-nesting - 1)
    return plate


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace by name, row numbers of plates left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def factor_sites(trace: Any) -> dict[str, Any]:
    """The sample sites that have a density: all but ``pyro.deterministic``."""
    sites = sample_sites(trace).items()
    return {name: site for name, site in sites if not site["infer"].get("_deterministic")}


def subsampled_rows(trace: Any) -> dict[str, Tensor]:
    """The row numbers of the trace's plates, by plate."""
    return {name: site["value"] for name, site in trace.nodes.items() if site_is_subsample(site)}


def drawn_values(trace: Any) -> dict[str, Tensor]:
    """What a guide's trace hands to the model: its draws and its plates' row numbers."""
    drawn = {n: site["value"] for n, site in sample_sites(trace).items() if not site["is_observed"]}
    return {**subsampled_rows(trace), **drawn}
