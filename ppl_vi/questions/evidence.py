"""The log evidence of the training data, and of new data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.diagnostics.pareto import khat_of_tail, usable
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.questions.predicting import weighing_of_new
from ppl_vi.questions.weighing import Means, Weighing
from ppl_vi.sweeping.guides import marginalized

_TOO_FEW, _SHARE = 10, 0.05
"""Effective draws, with fewer of which the delta method says little; the rows that may have fewer."""


class LogEvidence(Estimate):
    """An estimate of a log evidence in nats, with what it is made of.

    Too low on average, since the logarithm of a noisy mean is: by about half of the squared standard
    error.

    Attributes:
        standard_error: by the delta method, from the spread of the weights; infinite with one draw.
        quantity: what is estimated, in words.
        pointwise: ``[rows]``, that of each row by itself; None where rows have none.
        pointwise_standard_error: ``[rows]``, likewise.
        effective_draws: (Σ w)² / Σ w², the least of all means: how many equal weights say as much.
        khat: of the weights of all data together, as in ``result.khat()``; above 0.7 estimate and error
            are not to be relied on. NaN of fewer than 25 weights, and where rows have weights of their
            own.
    """

    quantity: str
    effective_draws: float
    khat: float
    pointwise: Tensor | None
    pointwise_standard_error: Tensor | None

    @classmethod
    def of(cls, means: Means, quantity: str) -> LogEvidence:
        """Sum the logarithms of independent means."""
        value = means.constant + sum(mean.log_mean.sum().item() for mean in means.whole)
        variance = sum(mean.standard_error.square().sum().item() for mean in means.whole)
        evidence = cls(value, math.sqrt(variance))
        evidence.quantity = quantity
        evidence.effective_draws = min(mean.effective.min().item() for mean in means.whole)
        evidence.khat = _khat(means)
        evidence.pointwise = _joined([mean.log_mean for mean in means.rows])
        evidence.pointwise_standard_error = _joined([mean.standard_error for mean in means.rows])
        return evidence

    def __reduce__(self) -> Any:
        return type(self), (float(self), self.standard_error), vars(self)


def _joined(rows: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(rows)) if rows else None


def log_evidence(job: Job, num_particles: int, data: Any) -> LogEvidence:
    """Estimate log p(x) of the data of a fit, or of other data; inside the fitted parameters.

    Args:
        job: the fitted model and guide.
        num_particles: K.
        data: as ``fit`` takes it; None for the data of the fit.

    Raises:
        ValueError: ``num_particles`` is not a positive integer.
        ModelError, GuideError, DataError: as ``fit`` does.
    """
    check_count("num_particles", num_particles)
    if data is None:
        summed = marginalized(job)
        weighing, quantity = Weighing(summed.weighted_pairs, job.data_plates), "log p(x)"
    else:
        weighing, quantity = weighing_of_new(job, data)
    means = weighing.means(num_particles)
    evidence = LogEvidence.of(means, quantity)
    if not _warn_of_uneven(means, num_particles, quantity):
        _warn_of_tail(evidence, num_particles)
    return evidence


def _khat(means: Means) -> float:
    (first, *others) = means.whole
    if others or first.largest is None or not first.largest.isfinite().any():
        return math.nan
    return khat_of_tail(first.largest, first.count)


def _warn_of_tail(evidence: LogEvidence, num_particles: int) -> None:
    """Where weights are uneven, but not so few; k-hat of nearly equal ones harms nothing."""
    uneven = evidence.effective_draws < num_particles / 2
    if uneven and evidence.khat >= usable(num_particles):
        warnings.warn(
            f"log_evidence: the weights have a heavy tail (k-hat {evidence.khat:.2f}, above "
            f"{usable(num_particles):.2f}), so that the estimate of {evidence.quantity} is too low and "
            f"its standard error too small, however many particles. Fit a richer guide.",
            stacklevel=4,
        )


def _warn_of_uneven(means: Means, num_particles: int, quantity: str) -> bool:
    """Whether so few weights count that there was a warning."""
    effective = torch.cat([mean.effective.reshape(-1) for mean in means.whole])
    poor = effective < min(_TOO_FEW, num_particles / 2)
    few = poor.double().mean().item() > _SHARE
    if few:
        where = f"of {int(poor.sum())} of {len(poor)} rows " if len(poor) > 1 else ""
        warnings.warn(
            f"log_evidence: the weights {where}are so uneven that they say as much as "
            f"{effective.min().item():.1f} equal ones, so that the estimate of {quantity} is too low "
            f"and its standard error too small. Take more particles, or fit a richer guide.",
            stacklevel=4,
        )
    return few
