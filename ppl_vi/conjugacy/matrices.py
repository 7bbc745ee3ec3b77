"""Positive definite latents (Wishart), and multiples of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.conjugacy.values import Law, Operation, Uncertain, rule


@dataclass(frozen=True)
class PositiveDefinite(Law):
    """A random precision matrix c V.

    Attributes:
        mean: ``[*batch, D, D]``, c E V.
        log_determinant: ``[*batch]``, D log c + E log |V|.
        factors: c ``[*batch]``, by the site of V; empty where the matrix is certain.
    """

    mean: Tensor
    log_determinant: Tensor
    factors: Mapping[str, Tensor]

    def divided(self, sites: Sequence[str]) -> Tensor | None:
        """c, where V is the given latent alone; None where it is not."""
        return self.factors.get(sites[0]) if len(sites) == 1 else None

    def times(self, number: Tensor) -> PositiveDefinite:
        """The law of the matrix times numbers ``[*batch]``."""
        log = self.log_determinant + self.mean.shape[-1] * number.log()
        factors = {site: factor * number for site, factor in self.factors.items()}
        return PositiveDefinite(self.mean * number[..., None, None], log, factors)


def inverse_of(root: Tensor) -> tuple[Tensor, Tensor]:
    """S⁻¹ and log |S| of S = L Lᵀ, from L ``[*batch, D, D]``."""
    return torch.cholesky_inverse(root), 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@rule(
    *("expand", "expand_as", "view", "view_as", "reshape", "unsqueeze", "squeeze", "getitem"),
    *("index_select", "contiguous", "clone", "to", "detach", "broadcast_to"),
)
def _moved(operation: Operation) -> Law | None:
    """Operations on the batch; a number for each matrix follows as a matrix filled with it."""
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], PositiveDefinite):
        return None
    law = laws[0]
    mean = operation.on(law.mean)
    if mean.dim() < 2 or mean.shape[-2:] != law.mean.shape[-2:]:
        return None
    number = _numbers(operation, law)
    factors = {site: number(factor) for site, factor in law.factors.items()}
    return PositiveDefinite(mean, number(law.log_determinant), factors)


def _numbers(operation: Operation, law: PositiveDefinite) -> Callable[[Tensor], Tensor]:
    def moved(number: Tensor) -> Tensor:
        found: Tensor = operation.on(number[..., None, None].expand_as(law.mean))[..., 0, 0]
        return found

    return moved


@rule("mul", "rmul", "multiply", "div", "truediv", "true_divide", "divide")
def _multiple(operation: Operation) -> Law | None:
    """A matrix times, or by, a number for each matrix."""
    one, other = operation.args[:2]
    divided = "div" in operation.function.__name__
    if isinstance(other, Uncertain) and not divided:
        one, other = other, one
    if isinstance(other, Uncertain) or not isinstance(one.law, PositiveDefinite):
        return None
    number = torch.as_tensor(other).to(one.law.mean)
    if number.dim() and number.shape[-2:] != (1, 1):
        return None
    number = number[..., 0, 0] if number.dim() else number
    return one.law.times(1 / number if divided else number)
