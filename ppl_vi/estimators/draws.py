"""One site's draws as its estimator sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.program import Batched, Latent, innermost


@dataclass(frozen=True)
class Draws:
    """The draws of one site, laid out ``[num_particles, replicas, states, *plates, *event]``.

    The replicas are the draw itself and those that vary this site; the states are those of sites
    that are summed over.

    Attributes:
        site: the site's name.
        latent: its draws as the program ran them.
        shape: ``(num_particles, replicas, states)`` of the run.
        replicas: which replicas of the run to look at.
    """

    site: str
    latent: Latent
    shape: tuple[int, int, int]
    replicas: Sequence[int]

    @property
    def value(self) -> Tensor:
        """``[num_particles, replicas, states, *plates, *event]``."""
        return self.select(self.latent.value)

    @property
    def log_q(self) -> Tensor:
        """``[num_particles, replicas, states, *plates]``, log q of the draws, as a score."""
        return self.select(self.latent.log_q)

    @property
    def family(self) -> Any:
        """The distribution inside ``.expand()`` and ``.to_event()``."""
        return innermost(self._batched().distribution)

    def parameter(self, name: str) -> Tensor:
        """``[num_particles, replicas, states, *plates, *event, ...]``, its gradient attached."""
        return self.select(self._batched().parameter(name))

    def logits(self) -> Tensor:
        """The logits, those of impossible states finite: no product with their weight 0 is NaN."""
        return finite_logits(self.parameter("logits"))

    def select(self, tensor: Tensor) -> Tensor:
        """Lay out ``[particles of the run, ...]`` and keep this site's replicas."""
        grid = tensor.reshape(*self.shape, *tensor.shape[1:])
        return grid[:, list(self.replicas)] if self.shape[1] > 1 else grid

    def _batched(self) -> Batched:
        if self.latent.batched is None:
            raise GuideError(
                f"site '{self.site}': its estimator needs a guide that runs all particles at once."
            )
        return self.latent.batched


def finite_logits(logits: Tensor) -> Tensor:
    """Logits no lower than that of a probability which rounds to nothing."""
    return logits.clamp(min=-1000.0)
