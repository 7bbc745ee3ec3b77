"""Data sets from a model's own prior, in the place of those that it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_vi.data.sources import DataSource
from ppl_vi.errors import DataError, ModelError
from ppl_vi.program import Pair, simulate
from ppl_vi.questions.holding import LearnedModel


class Simulated(NamedTuple):
    """A data set from the prior.

    Attributes:
        model: observes it, its learned parameters held.
        data: as ``fit`` takes them.
        latents: that it was made from, ``[*shape]`` by site.
    """

    model: Callable[..., Any]
    data: Any
    latents: dict[str, Tensor]


class Simulator:
    """Makes data sets like a given one from a model's prior.

    Where an observed value is one of the arguments, simulated values take its place, so that a guide
    sees them too. Other observed sites are conditioned on them.

    Args:
        model: the Pyro model, its parameters in the current scope.
        source: the data.
        reading: whether a guide may read the arguments, so that each observed site has to be one.

    Raises:
        ModelError: the model cannot be simulated; or, where the guide reads, an observed site is none
            of the arguments.
    """

    def __init__(
        self, model: Callable[..., Any], source: DataSource, reading: bool = False
    ) -> None:
        whole = source.whole()
        self._pair = Pair(model, model, whole.args, whole.kwargs)
        self._learned = LearnedModel(model, self._pair)
        self.modules, self.held = self._learned.modules, self._learned.held
        self._leaves, self._layout = tree_flatten((whole.args, whole.kwargs))
        observed = simulate(self._pair).observed
        if not observed:
            raise ModelError("the model observes nothing, so that there are no data to simulate.")
        self._places = {name: self._place(value) for name, value in observed.items()}
        lost = [name for name, place in self._places.items() if place is None]
        if reading and lost:
            raise ModelError(
                f"site '{lost[0]}': what it observes is none of the model's arguments, so that a guide "
                f"cannot be shown simulated values. Hand the observed values to the model as they are."
            )

    def draw(self) -> Simulated:
        """A data set, and what it was made from.

        Raises:
            DataError: it has a value that is not finite.
        """
        simulation = simulate(self._pair)
        leaves, conditioned = list(self._leaves), {}
        for name, value in simulation.observations.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise DataError(f"site '{name}': a simulated value is not finite.")
            place = self._places[name]
            if place is None:
                conditioned[name] = value
            else:
                leaves[place] = value.to(leaves[place].dtype).reshape(leaves[place].shape)
        args, kwargs = tree_unflatten(leaves, self._layout)
        data = kwargs if kwargs else args if args else None
        model: Callable[..., Any] = self._learned
        if conditioned:
            model = pyro.condition(self._learned, data=conditioned)
        return Simulated(_Named(model, self._pair.model), data, simulation.latents)

    def _place(self, value: Any) -> int | None:
        """Which of the arguments an observed value is."""
        tensors = {
            number: leaf for number, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)
        }
        for number, leaf in tensors.items():
            if leaf is value:
                return number
        for number, leaf in tensors.items():
            if isinstance(value, Tensor) and value.shape == leaf.shape and torch.equal(value, leaf):
                return number
        return None


class _Named:
    """A model that has the starting values of another one."""

    def __init__(self, model: Callable[..., Any], like: Any) -> None:
        self._model = model
        if hasattr(like, "initial_values"):
            self.initial_values = like.initial_values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)
