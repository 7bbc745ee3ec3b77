"""What a guide that looks at its model finds there, out of sight of what stands around the guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ppl_vi.errors import GuideError
from ppl_vi.program.expected import Latents, expected_terms, latents_of, summed_out
from ppl_vi.program.layout import is_real
from ppl_vi.program.messengers import unheard
from ppl_vi.program.naming import naming_site
from ppl_vi.program.scene import Call
from ppl_vi.program.tracing import (
    Pair,
    Program,
    draw_plainly,
    drawn_values,
    factor_sites,
    subsampled_rows,
    trace_model,
)
from ppl_vi.randomness import forked_rng


def look_at_latents(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Latents:
    """The latents of a model on these arguments; no parameter is created, no random number used."""
    with unheard(), forked_rng(), torch.no_grad(), pyro.get_param_store().scope():
        return latents_of(Pair(model, model, args, kwargs), draw_plainly)


def moving_supports(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The continuous latents whose supports other latents move, as of Uniform(0, sigmoid(z)).

    Found from two runs: one on draws of the prior, one with all continuous latents at the image of 0.
    """
    pair = Pair(model, model, args, kwargs)
    store = pyro.get_param_store()
    with unheard(), forked_rng(), torch.no_grad(), pyro.validation_enabled(False):
        with store.scope(store.get_state()):
            drawn = trace_model(pair, {})
            continuous = {
                name: site
                for name, site in factor_sites(drawn).items()
                if not site["is_observed"] and not site["fn"].support.is_discrete
            }
            if all(is_real(site["fn"].support) for site in continuous.values()):
                return []
            still = {name: _image_of_zero(site, site) for name, site in continuous.items()}
            again = trace_model(pair, {**subsampled_rows(drawn), **still}).nodes
            return [
                name
                for name, site in continuous.items()
                if not torch.equal(still[name], _image_of_zero(again[name], site))
            ]


def _image_of_zero(site: Mapping[str, Any], shaped: Mapping[str, Any]) -> Tensor:
    transform = biject_to(site["fn"].support)
    value: Tensor = transform(torch.zeros_like(transform.inv(shaped["value"])))
    return value


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
    call = Call(guide, args, kwargs)
    with naming_site("the guide", GuideError, call), unheard(), forked_rng(), torch.no_grad():
        return poutine.trace(guide).get_trace(*args, **kwargs).nodes[site]["fn"]
