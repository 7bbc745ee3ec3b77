"""Where the particles of one run stand: draws, alternative draws, and states that are summed over.

An estimator may need the program at several values of its site: at every state of a finite support,
or at alternatives to a draw. All of them are more particles of the same vectorised run, laid out as
``[num_particles, replicas, states]``. A site that does not depend on what is varied takes the value
that it has where nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """What one site has to know of the grid to be drawn on it.

    Attributes:
        shape: ``(num_particles, replicas, states)``.
        replicas: those that vary this site; replica 0 is the draw itself.
        states: ``[size]``, the state that each particle puts this site into; ``None`` for a draw.
    """

    shape: tuple[int, int, int]
    replicas: range
    states: Tensor | None


@dataclass(frozen=True)
class Grid:
    """The layout of the particles of one run.

    Attributes:
        num_particles: S, those that the bound is made of.
        replicas: by site, the replicas that vary it.
        axes: how many states each axis of the enumeration has.
        axis_of: by enumerated site, its axis; sites without a common factor may share one.
    """

    num_particles: int
    replicas: Mapping[str, range]
    axes: tuple[int, ...]
    axis_of: Mapping[str, int]

    @property
    def num_replicas(self) -> int:
        """R, the draw itself and all alternatives."""
        return 1 + sum(len(own) for own in self.replicas.values())

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_particles, replicas, states)``."""
        return self.num_particles, self.num_replicas, prod(self.axes)

    @property
    def size(self) -> int:
        """How many particles the program runs."""
        return prod(self.shape)

    @property
    def trivial(self) -> bool:
        """Whether all particles are plain draws."""
        return self.size == self.num_particles

    def place(self, name: str) -> Place:
        """What the site needs to be drawn."""
        states = None
        if name in self.axis_of:
            states = self._digits(self.axis_of[name]).repeat(self.num_particles * self.num_replicas)
        return Place(self.shape, self.replicas.get(name, range(0)), states)

    def _digits(self, axis: int) -> Tensor:
        """``[states]``, the state on one axis."""
        stride = prod(self.axes[axis + 1 :])
        return torch.arange(prod(self.axes)) // stride % self.axes[axis]

    def first_on(self, axes: frozenset[int]) -> Tensor:
        """``[states]``, whether a particle is at the first state of all these axes."""
        first = torch.ones(prod(self.axes), dtype=torch.bool)
        for axis in axes:
            first &= self._digits(axis) == 0
        return first

    def sources(self, varied_by: frozenset[str], name: str) -> Tensor | None:
        """``[size]``, from which particle each takes its value of a site; ``None`` for its own.

        Args:
            varied_by: the sites that this one depends on.
            name: the site.
        """
        follows = varied_by | {name}
        replica = torch.zeros(self.num_replicas, dtype=torch.long)
        for site, own in self.replicas.items():
            if site in follows:
                replica[list(own)] = torch.tensor(list(own))
        state = torch.zeros(prod(self.axes), dtype=torch.long)
        kept = {axis for site, axis in self.axis_of.items() if site in follows}
        for axis in kept:
            state += self._digits(axis) * prod(self.axes[axis + 1 :])
        particles, replicas, states = self.shape
        index = torch.arange(particles).reshape(-1, 1, 1) * replicas + replica.reshape(1, -1, 1)
        index = (index * states + state).reshape(-1)
        return None if torch.equal(index, torch.arange(self.size)) else index
