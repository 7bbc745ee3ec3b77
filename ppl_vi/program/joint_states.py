"""Discrete sites that are tied to each other by too many joint states to sum over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vi.errors import ModelError
from ppl_vi.observing import Observer

_MOST_NUMBERS = 2**26
"""In one tensor. A step holds some ten of them for each particle."""
_MANY_DIMENSIONS = 7
"""Larger than one: more than particles, plates and events have, so that they are states of sites."""


@contextmanager
def limited_joint_states(summed: Collection[str]) -> Iterator[None]:
    """Refuse tensors of too many joint states, before the memory of the machine is gone.

    Args:
        summed: the discrete sites that are summed out.

    Raises:
        ModelError: before the operation that would make such a tensor.
    """
    limit = _Limit()
    try:
        with limit:
            yield
    except ModelError:  # which others may have put into their own words
        if limit.refused is None:
            raise
        raise ModelError(_refusal(tuple(summed), limit.refused)) from None


class _Limit(Observer):
    """Stop before an operation whose arguments are, or broadcast to, too many joint states."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: tuple[int, ...] | None = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        shapes = [leaf.shape for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        for shape in (*shapes, _broadcast(shapes)):
            if sum(size > 1 for size in shape) >= _MANY_DIMENSIONS and prod(shape) > _MOST_NUMBERS:
                self.refused = tuple(shape)
                raise ModelError("too many joint states")
        return function(*args, **(kwargs or {}))


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    try:
        return tuple(broadcast_shape(*shapes))
    except ValueError:  # they do not: a matrix product, or an index
        return ()


def _refusal(summed: Sequence[str], shape: tuple[int, ...]) -> str:
    first = ", ".join(f"'{name}'" for name in summed[:3])
    more = ", ..." if len(summed) > 3 else ""
    return (
        f"the {len(summed)} discrete sites that are summed out ({first}{more}) depend on each other, "
        f"so that the exact sum needs tables of {prod(shape):.1g} numbers. Draw some of them in the "
        f"guide, let each factor depend on few of them, or loop over a chain of them with pyro.markov."
    )
