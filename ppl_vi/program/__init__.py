"""A typed view of Pyro programs; the only package that touches ``pyro.poutine``."""

from ppl_vi.program.batches import Arguments, enumerable_sites, find_data_plates, plate_dims
from ppl_vi.program.closed_forms import (
    ClosedForm,
    divergence,
    find_closed_forms,
    independent_of_draws,
    with_closed_forms,
)
from ppl_vi.program.dependencies import (
    Dependencies,
    FactorKey,
    drawn_together,
    find_dependencies,
    key,
)
from ppl_vi.program.expectation import only_expectation, valued
from ppl_vi.program.expected import (
    Latents,
    LatentSite,
    Term,
    Terms,
    expected_terms,
    latents_of,
    summed_out,
    weighted_sum,
)
from ppl_vi.program.features import features
from ppl_vi.program.inspection import inspect
from ppl_vi.program.layout import (
    align,
    expanded_parameter,
    innermost,
    joint_support,
    plate_frames,
)
from ppl_vi.program.locals import (
    distribution_of,
    log_joint_of,
    look_at_latents,
    run_inside,
)
from ppl_vi.program.messengers import (
    DataPlate,
    Draw,
    KeepFrozen,
    StartingValues,
    counted,
    enumerated,
    hide,
    unheard,
)
from ppl_vi.program.posterior import (
    completed,
    deterministic_values,
    draw_latents,
    observed_values,
    pointwise_log_likelihood,
    predictive_draws,
    squeezed,
)
from ppl_vi.program.run import Batched, Factor, Latent, Run, run, run_guide, run_model
from ppl_vi.program.structure import Plate, Site, Structure
from ppl_vi.program.tracing import Pair, draw_plainly

__all__ = [
    "Arguments",
    "Batched",
    "ClosedForm",
    "DataPlate",
    "Dependencies",
    "Draw",
    "Factor",
    "FactorKey",
    "KeepFrozen",
    "Latent",
    "LatentSite",
    "Latents",
    "Pair",
    "Plate",
    "Run",
    "Site",
    "StartingValues",
    "Structure",
    "Term",
    "Terms",
    "align",
    "completed",
    "counted",
    "deterministic_values",
    "distribution_of",
    "divergence",
    "draw_latents",
    "draw_plainly",
    "drawn_together",
    "enumerable_sites",
    "enumerated",
    "expanded_parameter",
    "expected_terms",
    "features",
    "find_closed_forms",
    "find_data_plates",
    "find_dependencies",
    "hide",
    "independent_of_draws",
    "innermost",
    "inspect",
    "joint_support",
    "key",
    "latents_of",
    "log_joint_of",
    "look_at_latents",
    "observed_values",
    "only_expectation",
    "plate_dims",
    "plate_frames",
    "pointwise_log_likelihood",
    "predictive_draws",
    "run",
    "run_guide",
    "run_inside",
    "run_model",
    "squeezed",
    "summed_out",
    "unheard",
    "valued",
    "weighted_sum",
    "with_closed_forms",
]
