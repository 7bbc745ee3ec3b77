"""Running means of importance weights, kept as logarithms, with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class MeanWeight:
    """The mean of weights that come in chunks, for many means side by side.

    log m = log (1/K) Σ_k w_k, with the standard error of the logarithm by the delta method,

    sd(w) / (√K m),  of which sd(w)² / m² = (K Σ w² / (Σ w)² - 1) K / (K - 1)

    Attributes:
        count: K so far.
        total: ``[...]``, log Σ w.
        squares: ``[...]``, log Σ w².
        largest: ``[some, ...]``, the largest log-weights, for their tail; at most so many as ``tail``.
        tail: how many largest weights are kept.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.tensor(-math.inf, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.tensor(-math.inf, dtype=torch.float64))

    tail: int = 0
    largest: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Take in ``[chunk, ...]`` log-weights."""
        log_w = log_w.detach().double()
        if self.tail:
            known = log_w if self.largest is None else torch.cat([self.largest, log_w])
            self.largest = known.topk(min(self.tail, len(known)), dim=0).values
        self.count += len(log_w)
        self.total = torch.logaddexp(self.total.to(log_w.device), log_w.logsumexp(0))
        self.squares = torch.logaddexp(self.squares.to(log_w.device), (2 * log_w).logsumexp(0))

    @property
    def log_mean(self) -> Tensor:
        """``[...]``: log m."""
        return self.total - math.log(self.count)

    @property
    def effective(self) -> Tensor:
        """``[...]``: (Σ w)² / Σ w², how many equal weights would be as even; 0 where all are 0."""
        return (2 * self.total - self.squares).exp().nan_to_num(nan=0.0)

    @property
    def standard_error(self) -> Tensor:
        """``[...]``: of log m; infinite of a single weight, or where all are 0."""
        if self.count == 1:
            return torch.full_like(self.total, math.inf)
        relative = (self.squares - 2 * self.total).exp().nan_to_num(nan=math.inf) - 1 / self.count
        return (relative.clamp(min=0.0) * self.count / (self.count - 1)).sqrt()

    def at(self, index: int) -> MeanWeight:
        """Those of one entry of the first dimension."""
        return MeanWeight(self.count, self.total[index], self.squares[index])
