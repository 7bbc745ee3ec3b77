"""Gaussian guides in unconstrained space: mean field, full rank and low rank."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn.module import PyroParam
from torch import Tensor, nn

from ppl_vi.counts import check_count
from ppl_vi.guides.joint import JointGuide
from ppl_vi.guides.unconstrained import Unconstrained, UnconstrainedGuide
from ppl_vi.registry import autoguide_builder, register_guide
from ppl_vi.starts import GuideStart

_FACTOR_START = 0.1


class NormalGuide(UnconstrainedGuide):
    """Mean field: every number of every latent has a Normal of its own, in unconstrained space.

    q(u) = Π_i Normal(u_i; center_i + width_i loc_i, width_i scale_i),  z = u on its support

    Centers and widths are buffers, set where the posterior was found; ``loc`` starts at 0 and
    ``scale`` at 1. Each site keeps its plates, so that bounds and credit go by plate. Its standard
    deviations are those of each latent given all others: too small where the posterior is correlated.

    Args:
        model: a Pyro model.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1000.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 0.01), obs=x)
        >>> result = fit(model, "normal", torch.tensor([5.0, 5.01, 5.02]), steps=300, progress=False)
        >>> round(result.guide.median()["mean"].item(), 2)
        5.01

    Source: Kucukelbir et al. (2017).
    """

    def _stands_apart(self, latent: Unconstrained, rows: frozenset[str]) -> bool:
        return True

    def _draw_together(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def _quantiles_together(self, probabilities: Tensor) -> dict[str, Tensor]:
        return {}


class GaussianGuide(JointGuide):
    """A joint guide whose e is Normal(loc, R R^T)."""

    loc: Tensor

    @abstractmethod
    def _root(self) -> Tensor:
        """R, ``[D, any]``."""

    def _quantiles_of_vector(self, probabilities: Tensor) -> Tensor:
        whitening = self.factor.diag() if self.factor.dim() == 1 else self.factor
        deviations = (whitening @ self._root()).square().sum(-1).sqrt()
        away: Tensor = torch.special.ndtri(probabilities).unsqueeze(-1)
        return self.unwhitened(self.loc) + away * deviations


class MultivariateNormalGuide(GaussianGuide):
    """Full rank: one multivariate Normal over all latents in unconstrained space.

    q(e) = Normal(loc, L L^T),  L = diag(scale) scale_tril,  u = location + factor e

    with ``scale_tril`` unit lower triangular. D (D + 3) / 2 numbers: for some hundreds of latents.

    Args:
        model: a Pyro model.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model(x, y):
        ...     weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)
        >>> x = torch.tensor([[1.0, 99.0], [1.0, 100.0], [1.0, 101.0]])
        >>> y = torch.tensor([98.0, 100.0, 102.0])
        >>> result = fit(model, "multivariate_normal", (x, y), steps=300, progress=False)
        >>> torch.corrcoef(result.sample(100)["weight"].mT)[0, 1] < -0.99
        tensor(True)

    Source: Kucukelbir et al. (2017), section 2.4.
    """

    def _set_up(self, dim: int, start: GuideStart) -> None:
        one = torch.ones_like(self.location)
        self.loc = nn.Parameter(torch.zeros_like(one))
        self.scale = PyroParam(one, constraints.softplus_positive)
        self.scale_tril = PyroParam(torch.diag(one), constraints.unit_lower_cholesky)

    def distribution(self) -> TorchDistribution:
        """Normal(loc, L L^T)."""
        return dist.MultivariateNormal(self.loc, scale_tril=self._root())

    def _root(self) -> Tensor:
        root: Tensor = self.scale.unsqueeze(-1) * self.scale_tril
        return root


class LowRankGuide(GaussianGuide):
    """Low rank plus diagonal: one multivariate Normal with D (rank + 2) numbers.

    q(e) = Normal(loc, diag(scale) (I + W W^T) diag(scale)),  u = location + factor e

    Args:
        model: a Pyro model.
        rank: of W, ``[D, rank]``; by default the square root of D, rounded.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Raises:
        ValueError: ``rank`` is not a positive integer.

    Example:
        >>> from ppl_vi.guides import LowRankGuide
        >>> guide = LowRankGuide(lambda: None, rank=3)

    Source: Ong, Nott and Smith (2018).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        rank: int | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if rank is not None:
            check_count("rank", rank)
        super().__init__(model, create_plates=create_plates)
        self.rank = rank

    def _set_up(self, dim: int, start: GuideStart) -> None:
        rank = self.rank or max(1, round(dim**0.5))
        one = torch.ones_like(self.location)
        self.loc = nn.Parameter(torch.zeros_like(one))
        self.scale = PyroParam(one, constraints.softplus_positive)
        # At W = 0 its gradient is 0.
        self.cov_factor = nn.Parameter(torch.randn(dim, rank).to(one) * (_FACTOR_START / rank**0.5))

    def distribution(self) -> TorchDistribution:
        """Normal(loc, diag(scale) (I + W W^T) diag(scale))."""
        factor = self.cov_factor * self.scale.unsqueeze(-1)
        return dist.LowRankMultivariateNormal(self.loc, factor, self.scale.square())

    def _root(self) -> Tensor:
        return torch.cat([self.cov_factor * self.scale.unsqueeze(-1), self.scale.diag()], -1)


register_guide("normal", autoguide_builder(NormalGuide))
register_guide("multivariate_normal", autoguide_builder(MultivariateNormalGuide))
register_guide("lowrank", autoguide_builder(LowRankGuide))
