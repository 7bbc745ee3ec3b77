"""The Gamma-Poisson model of counts."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.models.checks import check_lengths, check_shape, count, positive


class GammaPoisson:
    """Rates of groups with a common prior, a Pyro model ``model(groups, counts, exposure=None)``.

    n_i ~ Poisson(e_i rate_{g_i}),  rate_g ~ Gamma(shape, b),  b ~ Gamma(1, 1)

    Sites: ``b``, ``rate`` [G], ``counts`` [N].

    Args:
        num_groups: G.
        shape: of the rates' prior: the larger, the more alike are rates.

    Data are ``groups`` [N], integers from 0, ``counts`` [N] and ``exposure`` [N], the time or the
    population behind each count (1 by default), both floating-point.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import GammaPoisson
        >>> groups, counts = torch.tensor([0, 0, 1, 1]), torch.tensor([90.0, 110.0, 9.0, 11.0])
        >>> result = fit(GammaPoisson(2), "cavi", (groups, counts), progress=False)
        >>> result.guide.factors()["rate"].mean.round(decimals=-1)
        tensor([100.,  10.])

    Source: Gelman et al. (2013), section 2.6.
    """

    def __init__(self, num_groups: int, *, shape: float = 1.0) -> None:
        self.num_groups = count("num_groups", num_groups)
        self.shape = positive("shape", shape)

    def __call__(self, groups: Tensor, counts: Tensor, exposure: Tensor | None = None) -> Tensor:
        """The joint density of the latents and the counts; returns the counts' site."""
        name = "GammaPoisson"
        check_shape(f"{name}: groups", groups, "[N]", integer=True)
        check_shape(f"{name}: counts", counts, "[N]")
        exposure = torch.ones_like(counts) if exposure is None else exposure
        check_shape(f"{name}: exposure", exposure, "[N]")
        check_lengths(name, groups=groups, counts=counts, exposure=exposure)
        one = counts.new_ones(())
        b = pyro.sample("b", dist.Gamma(one, one))
        with pyro.plate("groups", self.num_groups):
            rate = pyro.sample("rate", dist.Gamma(self.shape * one, b))
        with pyro.plate("data", len(counts)):
            drawn: Tensor = pyro.sample("counts", dist.Poisson(exposure * rate[groups]), obs=counts)
        return drawn
