"""The pathwise (reparameterized) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator
from ppl_vi.program import Latent, Site


@dataclass(frozen=True)
class Pathwise(Estimator):
    """Differentiate through the draw: d/dλ E_q[f(z)] = E[∇f(z) · dz/dλ].

    Unbiased wherever the distribution has ``rsample`` and f is differentiable; usually the least
    noisy. Implicit derivatives (Gamma, Beta, Dirichlet) are those of torch.

    Raises:
        GuideError: the site's distribution has no reparameterized draw.

    Example:
        >>> from ppl_vi import ELBO, Pathwise
        >>> objective = ELBO(num_particles=4, estimators=Pathwise())

    Source: Kingma and Welling (2014); Figurnov et al. (2018) for implicit derivatives.
    """

    uses_credit: ClassVar[bool] = False

    def check(self, site: Site, num_particles: int) -> None:
        if not site.reparameterizable:
            raise GuideError(
                f"site '{site.name}': Pathwise needs a reparameterized draw, and {site.distribution} "
                f"has none. Use ScoreFunction() for this site."
            )

    def draw(self, distribution: Any) -> Tensor:
        value: Tensor = distribution.rsample()
        return value

    def term(self, latent: Latent, credit: Tensor) -> Tensor:
        return credit.new_zeros(())
