"""The exact sum over a finite support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator, usual
from ppl_vi.estimators.grid import Place
from ppl_vi.program import Latent, Site, joint_support


@dataclass(frozen=True, repr=False)
class Enumerate(Estimator):
    """Sum over every value of the site: E_q[f(z)] = Σ_z q(z) f(z).

    No noise of its own; the program runs at all values at once. In a plate each element is summed
    by itself. Named for a discrete site that the guide leaves out, it asks for what happens anyway:
    the model sums the site out.

    Raises:
        GuideError: the support is infinite or continuous, the joint states of enumerated sites are
            more than 1,024, the program mixes the elements of one of the site's plates, or the
            bound is not a mean of log-weights.

    Example:
        >>> from ppl_vi import ELBO, Enumerate
        >>> objective = ELBO(estimators={"z": Enumerate()})

    Source: Titsias and Lázaro-Gredilla (2015), for one site at a time.
    """

    uses_credit: ClassVar[bool] = False
    linear_only: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True
    takes_apart: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    def check(self, site: Site, num_particles: int) -> None:
        if not site.num_states:
            raise GuideError(
                f"site '{site.name}': Enumerate needs a finite support, and that of "
                f"{site.distribution} cannot be listed. Use {usual(site)} for this site."
            )

    def num_states(self, site: Site) -> int:
        return site.num_states

    def draw(self, distribution: Any, place: Place) -> Tensor:
        values = joint_support(distribution)
        batch, event = distribution.batch_shape, distribution.event_shape
        chosen = values[place.states.to(values.device)]  # type: ignore[union-attr]
        return chosen.reshape(batch[0], *(1,) * (len(batch) - 1), *event).expand(*batch, *event)

    def log_weight(self, latent: Latent) -> Tensor:
        return latent.log_q
