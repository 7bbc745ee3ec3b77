"""Climb a smooth function of a few tensors, by quasi-Newton steps with a line search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_FAR = 1e10
"""What a search is told of a point where the function is not finite, so that it turns back."""


@torch.enable_grad()
def climb(function: Callable[[], Tensor], leaves: Sequence[Tensor], iterations: int) -> None:
    """Move tensors to where a function of them is higher, and never to where it is lower.

    Args:
        function: of the leaves, which asks for their gradient.
        leaves: they are moved in place.
        iterations: the most of them.
    """
    with torch.no_grad():
        size = 1 + function().abs()  # by which its differences count
    flat = torch.finfo(leaves[0].dtype).eps
    optimizer = torch.optim.LBFGS(
        leaves,
        max_iter=iterations,
        tolerance_grad=flat**0.75,
        tolerance_change=flat,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        objective = -function() / size
        gradients = torch.autograd.grad(objective, leaves)
        finite = all(bool(tensor.isfinite().all()) for tensor in (objective, *gradients))
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient if finite else torch.zeros_like(leaf)
        return objective if finite else torch.full_like(objective, _FAR)

    before = [leaf.detach().clone() for leaf in leaves]
    start: Tensor = optimizer.step(loss)
    with torch.no_grad():
        if not -function() / size <= start:
            for leaf, old in zip(leaves, before, strict=True):
                leaf.copy_(old)
    for leaf in leaves:
        leaf.grad = None
