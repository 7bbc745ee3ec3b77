"""Positive definite latents (Wishart), and multiples of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vi.conjugacy.positive import Positive
from ppl_vi.conjugacy.sums import compact, spread
from ppl_vi.conjugacy.values import (
    SPREADS,
    Law,
    NotConjugateError,
    Operation,
    Uncertain,
    holds,
    rule,
)


@dataclass(frozen=True)
class PositiveDefinite(Law):
    """A random precision matrix c V.

    Attributes:
        mean: ``[*batch, D, D]``, c E V.
        log_determinant: ``[*batch]``, D log c + E log |V|.
        factors: by latent that the matrix is a multiple of, what it is multiplied by: of a Wishart
            latent c I ``[*batch, D, D]``.
    """

    mean: Tensor
    log_determinant: Tensor
    factors: Mapping[str, Tensor]

    def divided(self, sites: Sequence[str]) -> Tensor | None:
        """``[*batch, D, D]``: what a latent is multiplied by, of none the mean; None if it is not."""
        if not sites:
            return self.mean
        return self.factors.get(sites[0]) if len(sites) == 1 else None

    def compact(self) -> PositiveDefinite:
        """The law with one entry along each dimension that it was expanded over."""
        factors = {site: compact(factor, keep=2) for site, factor in self.factors.items()}
        return PositiveDefinite(compact(self.mean, keep=2), compact(self.log_determinant), factors)

    def times(self, number: Tensor) -> PositiveDefinite:
        """The law of the matrix times numbers ``[*batch]``."""
        log = self.log_determinant + self.mean.shape[-1] * number.log()
        number = number[..., None, None]
        factors = {site: factor * number for site, factor in self.factors.items()}
        return PositiveDefinite(self.mean * number, log, factors)

    @staticmethod
    def of(number: Positive, matrix: Tensor) -> PositiveDefinite:
        """The law of uncertain numbers ``[*batch]`` times a certain matrix.

        Raises:
            NotConjugateError: the expectation of the number is not known.
        """
        mean = number.mean()
        if mean is None:
            raise NotConjugateError("the expectation of its precision is not known")
        log = matrix.shape[-1] * number.log + torch.logdet(matrix)
        rest = {site: number.divided((site,)) for site in number.powers or {}}
        factors = {site: r[..., None, None] * matrix for site, r in rest.items() if r is not None}
        return PositiveDefinite(mean[..., None, None] * matrix, log, factors)


def number_and_matrix(law: Positive, name: str) -> tuple[Positive, Tensor]:
    """The law of ``[*batch]`` uncertain numbers, and the certain matrix that they multiply.

    Raises:
        NotConjugateError: the law is not of that form.
    """
    powers = {site: power.mean.expand_as(law.log) for site, power in (law.powers or {}).items()}
    gaps = [mean - mean[..., :1, :1] for mean in powers.values()]
    if law.factor is None or not all(holds(gap.eq(0).all) for gap in gaps):
        raise NotConjugateError(f"its {name} must be a number times a certain matrix")
    matrix = law.factor.expand_as(law.log)
    log = law.log[..., 0, 0] - matrix[..., 0, 0].log()
    own = {s: replace(p, mean=powers[s][..., 0, 0]) for s, p in (law.powers or {}).items()}
    return Positive(log, torch.ones_like(log), own), matrix


def inverse_of(root: Tensor) -> tuple[Tensor, Tensor]:
    """S⁻¹ and log |S| of S = L Lᵀ, from L ``[*batch, D, D]``."""
    return torch.cholesky_inverse(root), 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@rule(*SPREADS)
def _spread(operation: Operation) -> Law | None:
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], PositiveDefinite):
        return None
    law, shape = laws[0], operation.shape
    factors = {site: spread(factor, shape) for site, factor in law.factors.items()}
    log = spread(law.log_determinant, shape[:-2])
    return PositiveDefinite(spread(law.mean, shape), log, factors)


@rule(
    *("view", "view_as", "reshape", "unsqueeze", "squeeze", "getitem"),
    *("index_select", "contiguous", "clone", "to", "detach"),
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
    log = operation.on(law.log_determinant[..., None, None].expand_as(law.mean))[..., 0, 0]
    factors = {
        site: operation.on(factor.expand_as(law.mean)) for site, factor in law.factors.items()
    }
    return PositiveDefinite(mean, log, factors)


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
