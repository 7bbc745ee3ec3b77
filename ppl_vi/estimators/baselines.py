"""Baselines for score-function credit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Baseline
from ppl_vi.program import Site


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """The mean of the other particles: b_s = (Σ_t f_t - f_s) / (S - 1).

    Unbiased, since particles are independent. Also called RLOO.

    Raises:
        GuideError: there is only one particle.

    Example:
        >>> import torch
        >>> LeaveOneOut()(torch.tensor([1.0, 2.0, 6.0]))
        tensor([4.0000, 3.5000, 1.5000])

    Source: Salimans and Knowles (2014); Kool, van Hoof and Welling (2019).
    """

    def check(self, site: Site, num_particles: int) -> None:
        if num_particles < 2:
            raise GuideError(
                f"site '{site.name}': LeaveOneOut compares particles, and there is only one. Set "
                f"num_particles to 2 or more."
            )

    def __call__(self, downstream: Tensor) -> Tensor:
        others = downstream.shape[0] - 1
        return (downstream.sum(0, keepdim=True) - downstream) / others
