"""Gaussian latents, and what is multilinear in them.

A value is written in the standard Normal noises of its latents,

    v = a + Σ_i b_i ε_i + Σ_ij c_ij ε_i η_j + ...,

one sum for each set of independent latents. Then E v = a, and E v² is the sum of all squares. Every
affine operation of torch acts on each coefficient alone, and a product of values of different latents
on pairs of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ppl_vi.conjugacy.sums import before_spread, compact, spread
from ppl_vi.conjugacy.values import MOVES, SPREADS, Law, Operation, Uncertain, Unknown, rule

Sites = tuple[str, ...]


class Carried(str):
    """A Gaussian latent whose noise is divided by the root of another latent, its precision.

    Its coefficients in a value are those of ε / √τ, or, of a matrix Λ, of Λ^(-1/2) ε.

    Attributes:
        by: the site of τ or Λ.
    """

    by: str

    @classmethod
    def of(cls, site: str, by: str) -> Carried:
        """The latent of this name, carried by another."""
        made = cls(site)
        made.by = by
        return made


def carriers(sites: Sites) -> Sites:
    """The latents that carry a product of noises, each as often as it does."""
    return tuple(site.by for site in sites if isinstance(site, Carried))


class Multilinear(Law):
    """A value that is multilinear in independent Gaussian latents.

    Independent entries of a latent may share one noise where no entry of the value depends on two of
    them: expectations of squares are then the same. ``analysis`` gives others a noise each.

    Attributes:
        parts: by latents in alphabetical order, the coefficients of products of their noises,
            ``[*noises of each, *shape]``; those of none, the mean.
    """

    def __init__(self, parts: Mapping[Sites, Tensor]) -> None:
        self.parts = dict(parts)

    @property
    def mean(self) -> Tensor:
        """``[*shape]``, E v."""
        return self.parts[()]

    def compact(self, keep: int = 0) -> Multilinear:
        """The law with one entry along each dimension that it was expanded over, but the last ones."""
        return Multilinear({s: compact(p, keep) for s, p in self.parts.items()})

    @property
    def variances(self) -> dict[Sites, Tensor]:
        """``[*shape]``: Var v by what carries it, where that is one; nothing carries ``()``."""
        return self._by_carriers(lambda part, noises: part.square().sum(tuple(range(noises))))

    @property
    def covariances(self) -> dict[Sites, Tensor]:
        """``[*shape, last]``: the covariances of the entries of the last dimension, likewise."""

        def own(part: Tensor, noises: int) -> Tensor:
            columns = part.flatten(0, noises - 1).movedim(0, -1)
            return columns @ columns.mT

        return self._by_carriers(own)

    def _by_carriers(self, function: Callable[[Tensor, int], Tensor]) -> dict[Sites, Tensor]:
        found: dict[Sites, Tensor] = {}
        for sites, part in self.parts.items():
            if sites:
                own, by = function(part, len(sites)), carriers(sites)
                found[by] = found[by] + own if by in found else own
        return found

    @property
    def sites(self) -> set[str]:
        """The latents that it depends on."""
        return {site for sites in self.parts for site in sites}

    def plus(self, other: Multilinear, times: float = 1.0) -> Multilinear:
        """The law of ``value + times * other value``."""
        shape = torch.Size(broadcast_shape(self.mean.shape, other.mean.shape))
        parts = {sites: _expanded(part, sites, shape) for sites, part in self.parts.items()}
        for sites, part in other.parts.items():
            added = times * _expanded(part, sites, shape)
            parts[sites] = parts[sites] + added if sites in parts else added
        return Multilinear(parts)


def _expanded(part: Tensor, sites: Sites, shape: torch.Size) -> Tensor:
    """``[*noises, *shape]`` of a part of a value that has fewer dimensions."""
    noises = part.shape[: len(sites)]
    before = before_spread(part)
    own = before.shape[len(sites) :]
    laid = before.reshape([*noises, *(1,) * (len(shape) - len(own)), *own])
    return spread(laid, [*noises, *shape])


def multilinear(value: Any) -> Multilinear | None:
    """The law of a value, where a plain tensor or number is itself; None where it has another one."""
    if isinstance(value, Uncertain):
        return value.law if isinstance(value.law, Multilinear) else None
    return Multilinear({(): torch.as_tensor(value)})


def _mapped(function: Callable[..., Any], *depths: int) -> Callable[..., Any]:
    """The function mapped over the leading dimensions of its arguments, first argument outermost."""
    for place in reversed(range(len(depths))):
        dims = tuple(0 if number == place else None for number in range(len(depths)))
        for _ in range(depths[place]):
            function = torch.vmap(function, in_dims=dims)
    return function


def _on_each_part(operation: Operation) -> Multilinear | None:
    """The law after an operation that is linear in its only uncertain argument."""
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], Multilinear):
        return None
    parts = laws[0].parts.items()
    return Multilinear({sites: _mapped(operation.on, len(sites))(part) for sites, part in parts})


def _mapped_together(function: Callable[..., Any], depth: int) -> Callable[..., Any]:
    """The function mapped over the leading dimensions of all its arguments at once."""
    for _ in range(depth):
        function = torch.vmap(function)
    return function


@rule(*MOVES, "neg", "sum", "mean", "cumsum", "diff", "trace", "diagonal", "tril", "triu")
def _linear(operation: Operation) -> Law | None:
    """Operations that are linear in their only uncertain argument."""
    return _on_each_part(operation)


@rule(*SPREADS)
def _spread(operation: Operation) -> Law | None:
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], Multilinear):
        return None
    parts, shape = laws[0].parts.items(), operation.shape
    return Multilinear({sites: _expanded(part, sites, shape) for sites, part in parts})


@rule("split", "unbind", "chunk", "tensor_split")
def _several(operation: Operation) -> list[Law | None] | None:
    """Operations with several results."""
    laws = operation.laws
    if not all(isinstance(law, Multilinear) for law in laws):
        return None
    if len(laws) == 1 and isinstance(operation.args[0], Uncertain):
        parts = laws[0].parts.items()  # type: ignore[attr-defined]
        found = {sites: _mapped(operation.on, len(sites))(part) for sites, part in parts}
        return [
            Multilinear({sites: pieces[number] for sites, pieces in found.items()})
            for number in range(len(found[()]))
        ]
    return None


@rule("add", "radd", "sub", "subtract", "rsub")
def _sum(operation: Operation) -> Law | None:
    one, other = (multilinear(value) for value in operation.args[:2])
    if one is None or other is None or operation.kwargs:
        return None
    name = operation.function.__name__.strip("_")
    if name == "rsub":
        one, other = other, one
    return one.plus(other, times=-1.0 if "sub" in name else 1.0)


@rule("cat", "concat", "stack")
def _joined(operation: Operation) -> Law | None:
    tensors, *others = operation.args
    laws = [multilinear(value) for value in tensors]
    if any(law is None for law in laws):
        return None
    known = [law for law in laws if law is not None]
    noises = {s: part.shape[: len(s)] for law in known for s, part in law.parts.items()}

    def part(law: Multilinear, sites: Sites) -> Tensor:
        missing = law.mean.new_zeros(()).expand([*noises[sites], *law.mean.shape])
        return law.parts.get(sites, missing)

    def join(*own: Tensor) -> Any:
        return operation.function(own, *others, **operation.kwargs)

    return Multilinear(
        {
            sites: _mapped_together(join, len(sites))(*(part(law, sites) for law in known))
            for sites in noises
        }
    )


@rule("mul", "rmul", "multiply", "matmul", "rmatmul", "mm", "mv", "bmm", "einsum", "dot", "inner")
def _product(operation: Operation) -> Law | None:
    """Operations that are linear in each of their tensors."""
    laws = [law for law in operation.laws if isinstance(law, Multilinear)]
    if len(laws) < len(operation.laws) or len(laws) > 2:
        return None
    if len(laws) == 1:
        return _on_each_part(operation)
    if laws[0].sites & laws[1].sites:
        return Unknown("a product of a latent with itself")
    parts: dict[Sites, Tensor] = {}
    for (one, a), (other, b) in product(laws[0].parts.items(), laws[1].parts.items()):
        found = _mapped(operation.on, len(one), len(other))(a, b)
        sites = one + other
        order = sorted(range(len(sites)), key=lambda place: sites[place])
        parts[tuple(sorted(sites))] = found.permute([*order, *range(len(sites), found.dim())])
    return Multilinear(parts)


@rule("div", "truediv", "true_divide", "divide")
def _quotient(operation: Operation) -> Law | None:
    """A Gaussian by what is certain."""
    value, divisor = operation.args[:2]
    if isinstance(divisor, Uncertain) or not isinstance(value, Uncertain):
        return None
    return _on_each_part(operation)
