"""Which site a number that is not finite comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vi.data import Batch
from ppl_vi.job import Job
from ppl_vi.parameters import trainable
from ppl_vi.preparation import structure_of
from ppl_vi.program import Factor, draw_plainly, run

_DRAWS = (1, 100)
"""Of the guide: one that fails always needs few to be seen, one that fails at times more."""


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
                told = _told(factors, list(trainable().values()))
        except (ValueError, RuntimeError) as error:
            return f"; {str(error).splitlines()[0].rstrip('.')}"
        if told:
            return told
    return ""


def _told(factors: Sequence[Factor], parameters: Sequence[Tensor]) -> str:
    bad = [_named(f) for f in factors if not torch.isfinite(f.log_prob).all()]
    if bad:
        return f"; log-probabilities that are not finite: {', '.join(bad)}"
    steep = [_named(f) for f in factors if not _is_smooth(f.log_prob, parameters)]
    return f"; the log-probability of {steep[0]} is finite, its gradient is not" if steep else ""


def _is_smooth(log_prob: Tensor, parameters: Sequence[Tensor]) -> bool:
    if not log_prob.requires_grad:
        return True
    gradients = torch.autograd.grad(
        log_prob.sum(), parameters, retain_graph=True, allow_unused=True
    )
    return all(bool(torch.isfinite(each).all()) for each in gradients if each is not None)


def _named(factor: Factor) -> str:
    """Its sites, with the program where both have it."""
    names = ", ".join(f"'{name}'" for name in factor.sites)
    return f"{names} (in the guide)" if factor.origin == "guide" else names
