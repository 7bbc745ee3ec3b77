"""A joint Gaussian that was found, as a Pyro guide."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, MultivariateNormal
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from ppl_vi.program import Site, Structure
from ppl_vi.questions.gaussians import JointGaussian


class FoundGaussianGuide(torch.nn.Module):
    """Draw all numbers of some latents together, and send each site to its support.

    Args:
        gaussian: the joint distribution of the numbers.
        normal: the same, with a density.
        structure: that has the sites.
    """

    def __init__(
        self, gaussian: JointGaussian, normal: MultivariateNormal, structure: Structure
    ) -> None:
        super().__init__()
        self._gaussian, self._structure = gaussian, structure
        self.register_buffer("location", normal.loc)
        self.register_buffer("scale_tril", normal.scale_tril)

    @classmethod
    def of(cls, gaussian: JointGaussian, structure: Structure) -> FoundGaussianGuide | None:
        """The guide; None where some numbers decide over others, so that there is no density."""
        normal = gaussian.distribution()
        return None if normal is None else cls(gaussian, normal, structure)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, inside its plates."""
        joint = MultivariateNormal(self.location, scale_tril=self.scale_tril)
        numbers = pyro.sample("_conditional", joint, infer={"is_auxiliary": True})
        parts = numbers.split(list(self._gaussian.sizes.values()), -1)
        plates = {
            plate.name: pyro.plate(plate.name, plate.full_size, dim=plate.dim)
            for plate in self._structure.plates.values()
        }
        drawn = {}
        for name, part in zip(self._gaussian.sizes, parts, strict=True):
            site = self._structure.sites[name]
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate])
                drawn[name] = pyro.sample(name, self._point(site, part))
        return drawn

    def _point(self, site: Site, part: Tensor) -> Delta:
        """The site's value, with log |du / dz| for its density."""
        flat, transform, *_ = self._gaussian.transforms[site.name].parts
        # Particles stand left of all plates; the numbers have dimensions of size 1 in their place.
        batch = len(site.shape) - site.event_dim
        lead = part.shape[: max(0, part.dim() - 1 - batch)]
        numbers = flat(part.reshape(*lead, part.shape[-1]))
        value = transform(numbers)
        log_density = -transform.log_abs_det_jacobian(numbers, value)
        log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + site.event_dim)
        return Delta(value, log_density, event_dim=site.event_dim)
