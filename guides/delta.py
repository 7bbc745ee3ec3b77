"""Modes: the posterior's highest point, and the Gaussian of its curvature there."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.guides.gaussian import GaussianGuide, NormalGuide
from ppl_vi.guides.joint import JointGuide
from ppl_vi.guides.unconstrained import Unconstrained
from ppl_vi.job import Job
from ppl_vi.preparation import check_whole, structure_of
from ppl_vi.registry import autoguide_builder, register_guide
from ppl_vi.starts import GuideStart, WholeLogJoint, find_mode


class DeltaGuide(JointGuide):
    """MAP: all latents at one point, z* = argmax p(z | x), the density taken on their own supports.

    The point moves in whitened coordinates, so that scales and correlations of the posterior do no
    harm. A mode may be far from where the mass is; of a hierarchical model it may not exist.

    Args:
        model: a Pyro model.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model(x):
        ...     rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> result = fit(model, "delta", torch.tensor([4.0, 6.0]), steps=1_000, progress=False)
        >>> round(result.guide.median()["rate"].item(), 2)  # of Gamma(13, 3)
        4.0

    Source: Murphy (2012), section 5.2.1.
    """

    spread = False

    def _set_up(self, dim: int, start: GuideStart) -> None:
        self.loc = nn.Parameter(torch.zeros_like(self.location))

    def distribution(self) -> TorchDistribution:
        """All of it at ``loc``."""
        return dist.Delta(self.loc, event_dim=1)

    def _log_volume(self) -> Tensor:
        return torch.zeros_like(self.location)  # a point has no volume

    def _log_density(
        self, latent: Unconstrained, unconstrained: Tensor, value: Tensor
    ) -> Tensor | float:
        return 0.0


class LaplaceGuide(GaussianGuide):
    """Laplace's approximation: a Gaussian at the mode with the curvature there, unconstrained.

    q(u) = Normal(u*, H⁻¹),  u* = argmax log p(x, u),  H = -∇∇ log p(x, u*)

    with the density of u, which has the Jacobian of the supports. ``fit`` walks to the mode; when its
    steps are over, Newton's go the rest of the way, and H is found by automatic differentiation.

    Args:
        model: a Pyro model.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Raises:
        GuideError: a latent stands in the plate of minibatches, or the density has no mode near.
        ModelError: the model takes a subsample of its own.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> result = fit(model, "laplace", torch.ones(8), steps=10, seed=0, progress=False)
        >>> round(result.sample(10_000)["mean"].std().item(), 1)  # of Normal(8 / 9, 1 / 9)
        0.3

    Source: Tierney and Kadane (1986); Bishop (2006), section 4.4.
    """

    _at_mode = False

    def _set_up(self, dim: int, start: GuideStart) -> None:
        self.loc = nn.Parameter(torch.zeros_like(self.location))
        self.register_buffer("root", torch.eye(dim).to(self.location))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        if self._apart:
            raise GuideError(
                f"site '{self._apart[0]}' stands in the plate of minibatches, where the curvature is "
                f"never seen whole. Leave batch_size out, or use the guide 'normal'."
            )

    def get_extra_state(self) -> Tensor:
        """Whether it is the Gaussian already, for ``state_dict``."""
        return torch.tensor(self._at_mode)

    def set_extra_state(self, state: Tensor) -> None:
        """As ``get_extra_state`` gave it."""
        self._at_mode = bool(state)

    def distribution(self) -> TorchDistribution:
        """A point on the way to the mode, and the Gaussian when it is there."""
        if self._at_mode:
            return dist.MultivariateNormal(self.loc, scale_tril=self.root)
        return dist.Delta(self.loc, event_dim=1)

    def _root(self) -> Tensor:
        return self.root if self._at_mode else torch.zeros_like(self.root)

    def begin_fit(self, job: Job) -> None:
        """Walk to the mode as a point.

        Raises:
            ModelError: the model takes a subsample of its own, whose curvature is not that of all rows.
        """
        self._at_mode = False
        batch = next(job.source.sequence())
        with job.handler(batch):
            check_whole(structure_of(job.pair(batch)), job.data_plates, "the guide 'laplace'")

    @torch.no_grad()
    def finish_fit(self, job: Job) -> None:
        """Go to the mode by Newton's steps, and become the Gaussian there.

        Raises:
            GuideError: the curvature is not that of a mode.
        """
        factor = (self.factor if self.factor.dim() == 2 else self.factor.diag()).double()
        with pyro.get_param_store().scope(pyro.get_param_store().get_state()):
            normals = NormalGuide(self._program[0])
            normals.start_at(self._start)  # a flat prior has no draw to start at
            whole = WholeLogJoint(job, normals)
            mode = find_mode(whole, self.unwhitened(self.loc).double(), factor)
        root = mode.root()
        if root is None:
            raise GuideError(
                "the guide 'laplace' found no mode: the log joint is flat there, or rises without end, "
                "as that of a hierarchical model may. Use the guide 'multivariate_normal'."
            )
        away = (mode.location - self.location).unsqueeze(1)
        self.loc.copy_(torch.linalg.solve_triangular(factor, away, upper=False).squeeze(1))
        self.root.copy_(root)
        self._at_mode = True


register_guide("delta", autoguide_builder(DeltaGuide))
register_guide("laplace", autoguide_builder(LaplaceGuide))
