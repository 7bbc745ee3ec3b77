"""Adam, as a function of tensors."""

from __future__ import annotations

from torch import Tensor


def adam(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    updates: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of a step, and the moments after it.

        m = β₁ m + (1 - β₁) g,  v = β₂ v + (1 - β₂) g²,  direction = m̂ / (√v̂ + ε)

    with m̂ = m / (1 - β₁^t) and v̂ = v / (1 - β₂^t); the step is the rate times minus the direction.

    Args:
        gradient: of any shape.
        first: m, of the same shape; zeros before the first step.
        second: v, likewise.
        updates: t - 1, the number of steps before this one, a float64 scalar.
        betas: β₁ and β₂.
        eps: ε.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> adam(torch.tensor([3.0, -0.1]), zero, zero, torch.zeros((), dtype=torch.float64))[0]
        tensor([ 1.0000, -1.0000])

    Source: Kingma and Ba (2015).
    """
    beta1, beta2 = betas
    first = first + (1 - beta1) * (gradient - first)
    second = beta2 * second + (1 - beta2) * gradient * gradient
    step = updates + 1
    unbiased = (1 - beta1**step).to(gradient.dtype)
    root = (1 - beta2**step).sqrt().to(gradient.dtype)
    return first / unbiased / (second.sqrt() / root + eps), first, second
