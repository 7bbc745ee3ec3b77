"""A function of a guide's values as a program with one factor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.program.layout import PARTICLES
from ppl_vi.program.run import Run
from ppl_vi.program.tracing import Program, factor_sites

FACTOR = "expectation"
"""Name of the factor that holds the function."""


def valued(guide: Program, f: Callable[..., Tensor]) -> Program:
    """The guide's program followed by ``f`` of its values as a factor.

    A value of f with a plate's size in a plate's dimension is taken as one per element; any other is
    summed.
    """

    def program(*args: Any, **kwargs: Any) -> None:
        sites = factor_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        values = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
        found = _tensor(_called(f, values))
        frames = {
            frame.dim: frame
            for site in sites.values()
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        }
        with ExitStack() as plates:
            dims = [-1 - i for i, size in enumerate(reversed(found.shape)) if size > 1]
            if all(d in frames and frames[d].size == found.shape[d] for d in dims):
                for frame in (frames[d] for d in dims if frames[d].name != PARTICLES):
                    plates.enter_context(IndepMessenger(frame.name, frame.size, frame.dim))
                    full_size = frame.full_size or frame.size
                    plates.enter_context(poutine.scale(scale=full_size / frame.size))
            else:
                found = found.sum()
            pyro.factor(FACTOR, found)

    return program


def _called(f: Callable[..., Tensor], values: Mapping[str, Tensor]) -> Tensor:
    """f by site name where the arguments that it must have are sites, else on all values by name."""
    arguments: list[inspect.Parameter] = []
    with suppress(ValueError):  # a built-in function has no signature
        arguments = list(inspect.signature(f).parameters.values())
    required = [a.name for a in arguments if a.default is a.empty]
    if required and all(name in values for name in required):
        return f(**{a.name: values[a.name] for a in arguments if a.name in values})
    try:
        return f(values)
    except TypeError as cause:
        raise GuideError(
            f"f of Expectation could not be called ({cause}). Name its arguments after sites of the "
            f"guide ({', '.join(values)}), or let it take one dict of values by site."
        ) from cause


def _tensor(found: Any) -> Tensor:
    if not isinstance(found, Tensor | float | int):
        raise GuideError(f"f of Expectation must give a tensor or a number, not {found!r}.")
    return found if isinstance(found, Tensor) else torch.tensor(float(found))


def only_expectation(made: Run) -> Run:
    """The run with the function's factor alone."""
    kept = tuple(factor for factor in made.factors if factor.sites == (FACTOR,))
    return Run(made.num_particles, kept, made.latents, made.rows)
