"""Data sets that a model itself makes, with the latents behind them."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from ppl_vi.errors import ModelError
from ppl_vi.program.tracing import Pair, sample_sites, trace_model


class Simulation(NamedTuple):
    """One draw of everything from a model.

    Attributes:
        latents: ``[*shape]`` by site, as a single run has them; deterministic sites too.
        observations: likewise, of the sites that the model observes.
        observed: the values that the model was given for these.
    """

    latents: dict[str, Tensor]
    observations: dict[str, Tensor]
    observed: dict[str, Tensor]


def simulate(pair: Pair) -> Simulation:
    """Draw latents from the prior, and observations given these.

    Args:
        pair: the model and its arguments.

    Raises:
        ModelError: a site cannot be drawn, or has no distribution (``pyro.factor``).
    """
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = trace_model(pair._replace(model=poutine.uncondition(pair.model)), {})
    simulation = Simulation({}, {}, {})
    for name, site in sample_sites(trace).items():
        if isinstance(site["fn"], Unit):
            raise ModelError(
                f"site '{name}' is a pyro.factor, so that the model has no prior to draw data from. "
                f"Write it as sites with distributions."
            )
        if site["infer"].get("was_observed"):
            simulation.observations[name] = site["value"]
            simulation.observed[name] = site["infer"]["obs"]
        else:
            simulation.latents[name] = site["value"]
    return simulation
