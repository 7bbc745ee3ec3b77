"""Pareto-smoothed importance sampling: how heavy the tail of importance weights is, in words."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEWEST_DRAWS = 25
"""With fewer there is no tail that a distribution could be fitted to."""

_GOOD, _EQUAL = 0.5, 1e-3
_SMOOTHED, _REGULAR = 10, -0.5
"""Observations that ArviZ's prior for the shape counts for, and the shape below which tails that end
leave no standard error."""
_TRY = (
    "Try a guide with correlations if it has none ('multivariate_normal'), one that bends ('flow'), or "
    "NUTS"
)


def smoothed(log_w: Tensor, rounding: float = 0.0) -> tuple[Tensor, Tensor]:
    """Pareto-smoothed weights and their k-hat, by ArviZ's ``psislw``.

    The largest of S weights, about 3 √S of them, are replaced by quantiles of the generalised Pareto
    distribution that is fitted to them; k-hat is its shape. Where all of these weights are equal there
    is nothing to fit, and the tail is as light as one can be: minus infinity (ArviZ has plus infinity).
    NaN for fewer than 25 weights.

    Args:
        log_w: ``[S, ...]``, log-weights, for many sets side by side.
        rounding: weights whose logarithms differ by no more than this are equal.

    Returns:
        ``[S, ...]``: logarithms of smoothed weights that sum to one; ``[...]``: k-hat.

    Raises:
        FloatingPointError: a log-weight is NaN or plus infinity, or all weights of a set are 0.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024).
    """
    log_w = log_w.detach().double().cpu()
    if not (log_w < math.inf).all() or not (log_w.amax(0) > -math.inf).all():
        raise FloatingPointError(
            "importance weights: one is not a finite number, or all draws of the guide have a "
            "posterior density of 0. Fit again from another start, or on the model's support."
        )
    log_w = log_w - log_w.amax(0)  # ArviZ's tail ends where exp underflows
    if len(log_w) < FEWEST_DRAWS:
        return log_w - log_w.logsumexp(0), torch.full(log_w.shape[1:], math.nan).double()
    lengths = log_w.reshape(len(log_w), -1).numpy().T
    weights, k = _psislw(lengths)
    first = -tail_length(len(log_w)) - 1
    cutoff = np.partition(lengths, first, axis=1)[:, first]
    equal = (cutoff >= 0) | (-lengths.min(1) <= rounding)
    k = np.where(equal, -math.inf, k)
    weights = np.where(equal[:, None], lengths, weights)
    log_weights = torch.from_numpy(weights.T.copy()).reshape(log_w.shape)
    return log_weights - log_weights.logsumexp(0), torch.from_numpy(k).reshape(log_w.shape[1:])


def _psislw(log_w: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``[sets, S]`` smoothed log-weights and ``[sets]`` k-hats, by either generation of ArviZ."""
    import arviz as az  # it takes seconds, and not every fit needs it

    # Shapes may overflow that then get no weight, and equal weights have no shape.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if hasattr(az, "psislw"):
            weights, k = az.psislw(log_w)
        else:
            one = importlib.import_module("arviz_stats.base").array_stats
            weights, k = one.psislw(log_w, r_eff=1, axis=-1)
    return np.asarray(weights), np.asarray(k)


def tail_length(num_draws: int) -> int:
    """How many of so many weights are their tail: min(S / 5, 3 √S)."""
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def khat_of_tail(largest: Tensor, num_draws: int) -> float:
    """K-hat from the largest log-weights alone, one more than ``tail_length``; NaN of too few draws.

    Args:
        largest: ``[tail + 1]``.
        num_draws: how many weights there are in all; the others may be anything that is less.
    """
    others = largest.new_full((num_draws - len(largest),), -math.inf)
    return smoothed(torch.cat([largest, others]))[1].item()


def usable(num_draws: int) -> float:
    """Up to which k-hat so many draws suffice: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / math.log10(num_draws), 0.7)


def khat_error(khat: float, num_draws: int) -> float:
    """The standard error of a k-hat, from that of the shape that fits M = ``tail_length(S)`` weights.

        (1 + k) / √M · M / (M + 10)

    It is that of the maximum likelihood estimate, drawn together by ArviZ's prior of ten observations;
    for k below -1/2, where there is none, that of -1/2. NaN of no k.

    Args:
        khat: k; minus infinity, of equal weights, is exact.
        num_draws: S.

    Source: Smith (1985) for the estimate; Vehtari et al. (2024) for the prior.
    """
    if khat == -math.inf:
        return 0.0
    tail = tail_length(num_draws)
    return (1 + max(khat, _REGULAR)) * math.sqrt(tail) / (tail + _SMOOTHED)


class KHat(float):
    """The shape of the tail of importance weights: below 0.7 the guide is near enough to correct.

    Another call draws anew, and finds another k-hat within some ``standard_error``. Where the rows of
    the data have weights of their own, it is that of the worst row.

    Attributes:
        num_draws: S.
        effective_draws: (Σ w)² / Σ w² of the smoothed weights, how many equal ones say as much; that of
            the worst row.
        pointwise: ``[rows]``, that of each row; None where all rows have one weight together.
        log_weights: ``[S]`` or ``[S, rows]``, of the draws, smoothed; weights sum to one.
    """

    num_draws: int
    effective_draws: float
    pointwise: Tensor | None
    log_weights: Tensor

    @classmethod
    def of(cls, log_w: Tensor, rounding: float = 0.0) -> KHat:
        """From log-weights, ``[S]`` or ``[S, rows]``, which rounding may move so far."""
        log_weights, k = smoothed(log_w, rounding)
        khat = cls(k.max().item() if k.numel() else -math.inf)
        khat.num_draws = len(log_w)
        squares = (2 * log_weights).logsumexp(0)
        khat.effective_draws = (-squares).exp().min().item()
        khat.pointwise = k if k.dim() else None
        khat.log_weights = log_weights
        return khat

    @property
    def usable(self) -> bool:
        """Whether weighted draws can be relied on."""
        return self < usable(self.num_draws)

    @property
    def standard_error(self) -> float:
        """How far it moves from call to call; of the worst row, as if it were the same each time."""
        return khat_error(self, self.num_draws)

    @property
    def value(self) -> str:
        """The number and its standard error."""
        if self == -math.inf:
            return "minus infinity"
        return f"{float(self):.2f} ± {self.standard_error:.2f}"

    @property
    def doubt(self) -> str:
        """What to do where the next call may well say otherwise; empty where that is unlikely."""
        if not abs(self - usable(self.num_draws)) < self.standard_error:
            return ""
        return (
            f"It is too near to {usable(self.num_draws):.2f} to be sure of either: "
            f"khat(num_draws={10 * self.num_draws}) says more"
        )

    @property
    def close_in_bulk(self) -> bool:
        """Whether the weights say as much as half of the draws: what k-hat finds is in the tails."""
        return self.effective_draws > self.num_draws / 2

    @property
    def words(self) -> str:
        """What it means, and what to try where it is too large."""
        if self == -math.inf and self.effective_draws > (1 - _EQUAL) * self.num_draws:
            return (
                "all weights are equal, so the guide is the posterior, as far as these draws tell"
            )
        if self == -math.inf:
            return "fine: the largest weights are all equal, so that none stands out"
        if self < min(_GOOD, usable(self.num_draws)):
            if self.close_in_bulk:
                return "fine: the guide is close to the posterior"
            return "fine: the guide is too wide, but weighted draws correct it"
        if self.usable:
            return "fine: the guide is off, but near enough for weighted draws to correct it"
        if self.close_in_bulk:
            return (
                f"the guide is close in the bulk, but its tails are too light for weighted draws to "
                f"correct them{self._rows}"
            )
        return (
            f"the guide is too far from the posterior for weighted draws to correct it{self._rows}"
        )

    @property
    def remedy(self) -> str:
        """What to try; empty where nothing need be."""
        return "" if self.usable else _TRY

    @property
    def _rows(self) -> str:
        if self.pointwise is None:
            return ""
        poor = int((self.pointwise >= usable(self.num_draws)).sum())
        return f", in {poor} of {len(self.pointwise)} rows"

    def __str__(self) -> str:
        return f"{self.value} ({'. '.join(filter(None, (self.words, self.remedy, self.doubt)))})"

    def __repr__(self) -> str:
        return f"KHat({self})"

    def __reduce__(self) -> Any:
        return _restored, (float(self), vars(self))


def _restored(value: float, attributes: dict[str, Any]) -> KHat:
    khat = KHat(value)
    vars(khat).update(attributes)
    return khat
