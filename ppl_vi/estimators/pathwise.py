"""The pathwise (reparameterized) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator
from ppl_vi.estimators.grid import Place
from ppl_vi.program import Site


@dataclass(frozen=True, repr=False)
class Pathwise(Estimator):
    """Differentiate through the draw: d/dλ E_q[f(z)] = E[∇f(z) · dz/dλ].

    Unbiased wherever the distribution has ``rsample`` and f is differentiable; usually the least
    noisy. Implicit derivatives (Gamma, Beta, Dirichlet) are those of torch.

    Args:
        stick_the_landing: drop the score of q, whose mean is zero, from the gradient of -log q. The
            noise then vanishes as q becomes the posterior. For bounds that are a mean of
            log-weights; a site keeps its sampled log q in the gradient even where a closed form
            gives the bound's value.

    Raises:
        GuideError: the site's distribution has no reparameterized draw, or sticking the landing
            meets another kind of bound.

    Example:
        >>> from ppl_vi import ELBO, Pathwise
        >>> objective = ELBO(num_particles=4, estimators=Pathwise(stick_the_landing=True))

    Source: Kingma and Welling (2014); Figurnov et al. (2018) for implicit derivatives; Roeder, Wu and
    Duvenaud (2017) for sticking the landing.
    """

    stick_the_landing: bool = False
    uses_credit: ClassVar[bool] = False

    @property
    def linear_only(self) -> bool:  # type: ignore[override]
        return self.stick_the_landing

    def check(self, site: Site, num_particles: int) -> None:
        if self.stick_the_landing and site.fixed:
            raise GuideError(
                f"site '{site.name}': a Delta has no score to drop. Name the site that it is computed "
                f"from (of an autoguide: the auxiliary one), or use Pathwise()."
            )
        if not site.reparameterizable:
            raise GuideError(
                f"site '{site.name}': Pathwise needs a reparameterized draw, and {site.distribution} "
                f"has none. Use ScoreFunction() for this site."
            )

    def draw(self, distribution: Any, place: Place) -> Tensor:
        value: Tensor = distribution.rsample()
        return value
