"""What a guide that looks at its model finds there, out of sight of what stands around the guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.program.expected import Latents, expected_terms, latents_of, summed_out
from ppl_vi.program.messengers import naming_site, unheard
from ppl_vi.program.tracing import Pair, Program, draw_plainly, drawn_values
from ppl_vi.randomness import forked_rng


def look_at_latents(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Latents:
    """The latents of a model on these arguments; no parameter is created, no random number used."""
    with unheard(), forked_rng(), torch.no_grad(), pyro.get_param_store().scope():
        return latents_of(Pair(model, model, args, kwargs), draw_plainly)


def log_joint_of(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], latents: Latents
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """log p(x, z) as a function of values by site, discrete latents without a value summed out.

    Args:
        model: the Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        latents: as ``look_at_latents`` found them.
    """
    pair = Pair(model, model, args, kwargs)
    discrete = [site.name for site in latents.sites if site.enumerable]

    def log_joint(values: Mapping[str, Tensor]) -> Tensor:
        left = [name for name in discrete if name not in values]
        with unheard(), pyro.validation_enabled(False):
            terms = expected_terms(pair, values, left, latents.nesting, _log_prob)
            return summed_out(terms, left)

    return log_joint


def _log_prob(name: str, distribution: Any, value: Tensor) -> Tensor:
    found: Tensor = distribution.log_prob(value)
    return found


def run_inside(guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Run a guide as a part of another one: its draws, and the row numbers of its plates."""
    return drawn_values(poutine.trace(guide).get_trace(*args, **kwargs))


def distribution_of(
    guide: Program, site: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The distribution that a guide draws a site from, on these arguments."""
    with naming_site("the guide", GuideError), unheard(), forked_rng(), torch.no_grad():
        return poutine.trace(guide).get_trace(*args, **kwargs).nodes[site]["fn"]
