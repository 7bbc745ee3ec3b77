"""Wishart draws."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


class Wishart(dist.Wishart):
    """Wishart; torch's own takes every draw for singular, warns, and draws again.

    Args:
        df: degrees of freedom n, above D - 1.
        covariance_matrix: the scale S ``[..., D, D]``, with E V = n S; or ``precision_matrix``, its
            inverse; or ``scale_tril``, its root.

    Example:
        >>> import torch
        >>> from ppl_vi.distributions import Wishart
        >>> Wishart(torch.tensor(4.0), torch.eye(2)).sample((5,)).shape
        torch.Size([5, 2, 2])

    Source: Bartlett (1933); Bishop (2006), appendix B.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """``[*sample_shape, *batch, D, D]``, by Bartlett's decomposition."""
        drawn: Tensor = self._bartlett_sampling(torch.Size(sample_shape))
        return 0.5 * (drawn + drawn.mT)  # rounding leaves a difference
