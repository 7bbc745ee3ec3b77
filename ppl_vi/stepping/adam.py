"""Adam, as a function of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def adam(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    updates: Tensor,
    rate: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """A step downhill, to be subtracted from the parameters, and the moments after it.

        m = β₁ m + (1 - β₁) g,  v = β₂ v + (1 - β₂) g²,  step = rate m̂ / (√v̂ + ε)

    with m̂ = m / (1 - β₁^t) and v̂ = v / (1 - β₂^t), in the order of operations of torch's own.

    Args:
        gradient: of any shape.
        first: m, of the same shape; zeros before the first step.
        second: v, likewise.
        updates: t - 1, the number of steps before this one, a float64 scalar.
        rate: of learning, a number or a float64 scalar.
        betas: β₁ and β₂.
        eps: ε.

    Example:
        >>> zero = torch.zeros(2)
        >>> none = torch.zeros((), dtype=torch.float64)
        >>> adam(torch.tensor([3.0, -0.1]), zero, zero, none, rate=1.0)[0]
        tensor([ 1.0000, -1.0000])

    Source: Kingma and Ba (2015).
    """
    beta1, beta2 = betas
    first = torch.lerp(first, gradient, 1 - beta1)
    second = torch.addcmul(beta2 * second, gradient, gradient, value=1 - beta2)
    count = updates + 1
    unbiased = (rate / (1 - beta1**count)).to(gradient.dtype)
    root = (1 - beta2**count).sqrt().to(gradient.dtype)
    return unbiased * first / (second.sqrt() / root + eps), first, second
