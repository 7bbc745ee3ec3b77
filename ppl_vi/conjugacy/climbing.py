"""Climb a smooth function of a few tensors, by quasi-Newton steps with a line search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_FAR = 1e10
"""What a search is told of a point where the function is not finite, so that it turns back."""


@torch.enable_grad()
def climb(
    function: Callable[[], Tensor],
    leaves: Sequence[Tensor],
    iterations: int,
    whole: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple,
) -> None:
    """Move tensors to where a function of them is higher, and never to where it is lower.

    Args:
        function: of the leaves, which asks for their gradient.
        leaves: they are moved in place.
        iterations: the most of them.
        whole: what the function and its gradients are over all processes, from what they are in this.
    """
    with torch.no_grad():
        size = 1 + whole((function(),))[0].abs()  # by which its differences count
    flat = torch.finfo(leaves[0].dtype).eps
    optimizer = torch.optim.LBFGS(
        leaves,
        max_iter=iterations,
        tolerance_grad=flat**0.75,
        tolerance_change=flat,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        own = -function() / size
        objective, *gradients = whole((own, *torch.autograd.grad(own, leaves)))
        finite = all(bool(tensor.isfinite().all()) for tensor in (objective, *gradients))
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient if finite else torch.zeros_like(leaf)
        return objective if finite else torch.full_like(objective, _FAR)

    before = [leaf.detach().clone() for leaf in leaves]
    start: Tensor = optimizer.step(loss)
    with torch.no_grad():
        if not -whole((function(),))[0] / size <= start:
            for leaf, old in zip(leaves, before, strict=True):
                leaf.copy_(old)
    for leaf in leaves:
        leaf.grad = None
