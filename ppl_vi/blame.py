"""Which site a number that is not finite comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_vi.data.sources import Batch
from ppl_vi.job import Job
from ppl_vi.parameters import trainable
from ppl_vi.preparation import structure_of
from ppl_vi.program import Factor, draw_plainly, run

_DRAWS = (1, 100)
"""Of the guide: one that fails always needs few to be seen, one that fails at times more."""
_MOST_NAMES = 3


def blame(job: Job, batch: Batch) -> str:
    """Which sites have a log-probability, or a gradient of it, that is not finite, in words.

    Args:
        job: model, guide and data.
        batch: on which the step failed.
    """
    pair = job.pair(batch)
    for num_draws in _DRAWS:
        try:
            with torch.enable_grad(), job.handler(batch):
                factors = run(structure_of(pair), pair, draw_plainly, num_draws).factors
                told = _told(factors, trainable())
        except (ValueError, RuntimeError) as error:
            return f"; {str(error).splitlines()[0].rstrip('.')}"
        if told:
            return told
    return ""


def _told(factors: Sequence[Factor], parameters: Mapping[str, Tensor]) -> str:
    bad = [factor for factor in factors if not torch.isfinite(factor.log_prob).all()]
    if bad:
        behind = list(_gradients(bad[0], parameters))
        more = ", ..." if len(behind) > _MOST_NAMES else ""
        depends = ", ".join(f"'{name}'" for name in behind[:_MOST_NAMES]) + more
        told = f"; log-probabilities that are not finite: {', '.join(map(_named, bad))}"
        return f"{told} (parameters behind it: {depends})" if behind else told
    for factor in factors:
        if not all(torch.isfinite(each).all() for each in _gradients(factor, parameters).values()):
            return f"; the log-probability of {_named(factor)} is finite, its gradient is not"
    return ""


def _gradients(factor: Factor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the log-probability, in the parameters that it depends on."""
    if not factor.log_prob.requires_grad:
        return {}
    found = torch.autograd.grad(
        factor.log_prob.sum(), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {n: each for n, each in zip(parameters, found, strict=True) if each is not None}


def _named(factor: Factor) -> str:
    """Its sites, with the program where both have it."""
    names = ", ".join(f"'{name}'" for name in factor.sites)
    return f"{names} (in the guide)" if factor.origin == "guide" else names
