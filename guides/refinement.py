"""Semi-amortized inference: a few steps for each datum, from where an encoder puts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Refinement:
    """A few natural-gradient steps on the ELBO of each datum, from the encoder's output.

    With g and h the mean gradient and the mean negative curvature of log p(x, z) under the factor,

        1/s² ← (1 - rate)/s² + rate · max(h, 0),   m ← m + rate · s² · g,

    one step of which, at rate 1, is exact for a linear model with Gaussian noise and one latent
    dimension. g and h are taken at a few fixed draws (h by Stein's identity), so that the guide stays a
    function of its data: the bound is valid whatever the steps come to. The encoder's gradient passes
    the steps as if they added a constant, which leaves second derivatives out.

    Args:
        steps: how many; each takes ``num_draws`` runs of the model.
        rate: between 0 and 1.
        num_draws: an even number, since draws come in pairs of opposite sign.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> Refinement(steps=5).rate
        0.5

    Source: Kim et al. (2018); Khan and Lin (2017) for the steps.
    """

    steps: int = 3
    rate: float = 0.5
    num_draws: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.rate <= 1 or self.num_draws < 2 or self.num_draws % 2:
            raise ValueError(
                f"Refinement needs steps of 1 or more, a rate between 0 and 1 and an even number of "
                f"draws, not {self!r}."
            )

    def __call__(
        self, log_joint: Callable[[Tensor], Tensor], loc: Tensor, scale: Tensor, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """The refined mean and standard deviations.

        Args:
            log_joint: the sum over the data, of the latent ``[*plates, *event]``.
            loc: ``[*plates, *event]``.
            scale: likewise, standard deviations.
            event_dim: how many of these dimensions are the event.
        """
        mean, deviation = loc.detach(), scale.detach()
        event = loc.shape[loc.dim() - event_dim :]
        noise = [draw.to(loc) for draw in _noise(event, self.num_draws)]
        for _ in range(self.steps):
            gradients = [self._gradient(log_joint, mean + deviation * e) for e in noise]
            slope = torch.stack(gradients).mean(0)
            bent = [g * e for g, e in zip(gradients, noise, strict=True)]
            curvature = -torch.stack(bent).mean(0) / deviation
            kept = (1 - self.rate) / deviation.square()
            precision = (kept + self.rate * curvature.clamp(min=0)).clamp(min=1e-12)
            mean, deviation = mean + self.rate * slope / precision, precision.rsqrt()
        return loc + (mean - loc.detach()), scale * (deviation / scale.detach())

    @staticmethod
    def _gradient(log_joint: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_joint(leaf), leaf)
        return gradient


@cache
def _noise(event: torch.Size, count: int) -> tuple[Tensor, ...]:
    """Fixed draws of one event, of variance one in each entry, in pairs of opposite sign."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(count // 2, *event, generator=generator, dtype=torch.float64)
    half = half / half.square().mean(0).sqrt()
    return tuple(sign * draw for draw in half for sign in (1.0, -1.0))
