"""Draws that belong to rows: each process of several draws what one alone would, and keeps its rows.

Inside the plates over the rows every random operation is run for the rows of all processes, on the
generator that they have in common, and a process takes those that it has. So the numbers of a row do
not depend on how many processes there are, and generators stay together. Where how many numbers a
sampler consumes depends on its parameters (Gamma, Dirichlet, Poisson, Binomial), these are brought
together first. A sampler that cannot be followed draws by itself, seeded by the process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ppl_vi.errors import CompileError
from ppl_vi.observing import Observer, recorded
from ppl_vi.randomness import forked_rng

_BY_PARAMETERS = ("_standard_gamma", "_sample_dirichlet", "poisson", "binomial")
"""Operations that consume as many random numbers as their parameters ask for."""


@dataclass(frozen=True, eq=False)
class Part:
    """The rows that a process has of a batch.

    Attributes:
        places: ``[B_r]``, where they stand among the batch's rows; of a borrowed row, anywhere.
        size: B, the rows of the batch in all processes.
        own: how many of them are its own; 0 where it has borrowed one so as to take part.
        rank: the number of the process.
        sum: sums a tensor over all processes.
    """

    places: Tensor
    size: int
    own: int
    rank: int
    sum: Callable[[Tensor], Tensor]

    @property
    def share(self) -> float:
        """The part of the batch that it has."""
        return self.own / self.size

    def taken(self, everyone: Tensor, dim: int) -> Tensor:
        """The process's rows of all."""
        return everyone.index_select(dim, self.places.to(everyone.device))

    def padded(self, own: Tensor, dim: int) -> Tensor:
        """Its rows at their places; at those of others anything that its own may be."""
        some = torch.arange(self.size, device=own.device) % own.shape[dim]
        return own.index_select(dim, some).index_copy(dim, self.places.to(own.device), own)

    def gathered(self, own: Tensor, dim: int) -> Tensor:
        """The rows of all processes."""
        shape = (*own.shape[:dim], self.size, *own.shape[dim + 1 :])
        everyone = own.new_zeros(shape)
        if self.own:
            everyone.index_copy_(dim, self.places.to(own.device), own)
        return self.sum(everyone)


class _LostRowsError(Exception):
    """An operation does not show its rows."""


class _EveryRow(Observer):
    """Runs random operations for the rows of all processes.

    Args:
        part: the rows that this one has.
        batch_shape: of the distribution that is drawn from; its operations have shapes that hold it, or
            begin with as many elements.
        dim: of the rows, in the batch shape.
    """

    def __init__(self, part: Part, batch_shape: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.part, self.batch_shape, self.dim = part, batch_shape, dim
        self._looked = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            self._looked = True
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if self._looked:
            raise _LostRowsError  # it draws until all rows are accepted, for one
        return self._drawn(func, args, kwargs)

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        name, first = func.overloadpacket.__name__, args[0]
        together = name in _BY_PARAMETERS
        if together and recorded():
            raise CompileError(
                f"'{name}' consumes random numbers as its parameters ask for, which several processes "
                f"bring together in each draw"
            )
        shape = tuple(first.shape) if isinstance(first, Tensor) else tuple(first)
        spread, dim = self._layout(shape)
        bring = self.part.gathered if together else self.part.padded

        def whole(argument: Any) -> Any:
            if not isinstance(argument, Tensor) or argument.dim() == 0:
                return argument
            if tuple(argument.shape) != shape:
                raise _LostRowsError
            found = bring(argument.reshape(spread), dim)
            return found.flatten(0, dim_of_last) if flat else found

        flat, dim_of_last = len(spread) > len(shape), len(self.batch_shape) - 1
        if isinstance(first, Tensor):
            everyone = func(*map(whole, args), **kwargs)
        else:
            sizes = self._sizes(spread, dim)
            sizes = [prod(sizes[: dim_of_last + 1]), *sizes[dim_of_last + 1 :]] if flat else sizes
            everyone = func(sizes, *args[1:], **kwargs)
        if flat:
            rows = self._sizes(spread, dim)[: dim_of_last + 1]
            everyone = everyone.reshape(*rows, *everyone.shape[1:])
        mine = self.part.taken(everyone, dim)
        mine = mine.flatten(0, dim_of_last) if flat else mine
        in_place = name.endswith("_")
        return first.copy_(mine) if in_place else mine

    def _layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The shape with the batch's dimensions apart, and which of them is that of rows."""
        batch = self.batch_shape
        left = _place(batch, shape)
        if left is not None:
            return shape, left + self.dim
        if shape and shape[0] == prod(batch):  # as a Categorical draws
            return (*batch, *shape[1:]), self.dim
        left = _place(batch[1:], shape)  # half of the particles are drawn as pairs, say
        if self.dim == 0 or left is None:
            raise _LostRowsError
        return shape, left + self.dim - 1

    def _sizes(self, shape: tuple[int, ...], dim: int) -> list[int]:
        return [*shape[:dim], self.part.size, *shape[dim + 1 :]]


def _place(plates: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Where in a shape the sizes of plates stand, one after the other; None where they do not."""
    places = range(len(shape) - len(plates) + 1)
    return next((left for left in places if shape[left : left + len(plates)] == plates), None)


def drawn_by_rows(part: Part, distribution: Any, dim: int, draw: Callable[[], Tensor]) -> Tensor:
    """A site's value: the process's rows of what a process alone would draw.

    Args:
        part: the rows that this one has.
        distribution: of the site, expanded over all its plates.
        dim: of the rows, counted from the right of its batch shape.
        draw: draws it.
    """
    shape = tuple(distribution.batch_shape)
    captured = recorded()
    before = None if captured else torch.get_rng_state()
    try:
        with _EveryRow(part, shape, len(shape) + dim):
            return draw()
    except _LostRowsError as error:
        if before is None:
            raise CompileError(
                f"a draw of {type(distribution).__name__} does not show several processes its rows"
            ) from error
        torch.set_rng_state(before)
        seed = int(torch.randint(2**31, ()))
        with forked_rng(seed=seed + part.rank):
            return draw()


def row_dim(frames: Sequence[Any], names: Collection[str]) -> int | None:
    """The dimension of the rows among a site's plates, counted from the right; None without any."""
    return next((frame.dim for frame in frames if frame.name in names), None)
