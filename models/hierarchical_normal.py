"""The hierarchical Normal model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vi.models.checks import check_lengths, check_shape, count, deviation, positive


class HierarchicalNormal:
    """Group means with a common prior and unknown variances, a Pyro model ``model(groups, y)``.

    y_i ~ Normal(theta_{g_i}, within^-½),  theta_g ~ Normal(m, between^-½),
    m ~ Normal(mean of y, 10 spread),  within, between ~ Gamma(1, spread²)

    Sites: ``m``, ``between`` and ``within`` (precisions), ``theta`` [G], ``y`` [N].

    Args:
        num_groups: G.
        spread: the scale of the data; by default their standard deviation.

    Data are ``groups`` [N], integers from 0, and ``y`` [N] floating-point.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import HierarchicalNormal
        >>> groups = torch.arange(3).repeat(50)
        >>> y = torch.tensor([-2.0, 0.0, 4.0])[groups] + 0.1 * torch.randn(150)
        >>> result = fit(HierarchicalNormal(3), "cavi", (groups, y), progress=False)
        >>> result.guide.factors()["theta"].mean.round() + 0.0
        tensor([-2.,  0.,  4.])

    Source: Gelman et al. (2013), section 5.4.
    """

    def __init__(self, num_groups: int, *, spread: float | None = None) -> None:
        self.num_groups = count("num_groups", num_groups)
        self.spread = None if spread is None else positive("spread", spread)

    def __call__(self, groups: Tensor, y: Tensor) -> Tensor:
        """The joint density of the latents and the data; returns the data's site."""
        name = "HierarchicalNormal"
        check_shape(f"{name}: groups", groups, "[N]", integer=True)
        check_shape(f"{name}: y", y, "[N]")
        check_lengths(name, groups=groups, y=y)
        spread = deviation(y) if self.spread is None else y.new_tensor(self.spread)
        precision = dist.Gamma(y.new_ones(()), spread.square())
        m = pyro.sample("m", dist.Normal(y.detach().mean(), 10 * spread))
        between = pyro.sample("between", precision)
        within = pyro.sample("within", precision)
        with pyro.plate("groups", self.num_groups):
            theta = pyro.sample("theta", dist.Normal(m, between.rsqrt()))
        with pyro.plate("data", len(y)):
            drawn: Tensor = pyro.sample("y", dist.Normal(theta[groups], within.rsqrt()), obs=y)
        return drawn
