"""A typed view of Pyro programs; the only package that touches ``pyro.poutine``."""

from ppl_vi.program.batches import Arguments, enumerable_sites, find_data_plates, plate_dims
from ppl_vi.program.dependencies import Dependencies, find_dependencies
from ppl_vi.program.inspection import inspect
from ppl_vi.program.messengers import DataPlate, Draw, KeepFrozen, StartingValues, enumerated, hide
from ppl_vi.program.posterior import (
    completed,
    deterministic_values,
    draw_latents,
    observed_values,
    pointwise_log_likelihood,
    predictive_draws,
    squeezed,
)
from ppl_vi.program.run import Factor, Latent, Run, run
from ppl_vi.program.structure import Plate, Site, Structure
from ppl_vi.program.tracing import Pair, draw_plainly

__all__ = [
    "Arguments",
    "DataPlate",
    "Dependencies",
    "Draw",
    "Factor",
    "KeepFrozen",
    "Latent",
    "Pair",
    "Plate",
    "Run",
    "Site",
    "StartingValues",
    "Structure",
    "completed",
    "deterministic_values",
    "draw_latents",
    "draw_plainly",
    "enumerable_sites",
    "enumerated",
    "find_data_plates",
    "find_dependencies",
    "hide",
    "inspect",
    "observed_values",
    "plate_dims",
    "pointwise_log_likelihood",
    "predictive_draws",
    "run",
    "squeezed",
]
