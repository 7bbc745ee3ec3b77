"""The factors of q: conjugate families, held as natural parameters.

A family turns natural parameters into mean parameters, lets a program run on them, and turns the
gradient of the expected log-density with respect to them into new natural parameters: for a factor
whose neighbours are held, that gradient is the optimum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.values import Law

Tensors = tuple[Tensor, ...]


class Factor(ABC):
    """A factor of q, of one site or of several."""

    @abstractmethod
    def moments(self, natural: Tensors) -> Tensors:
        """The mean parameters, in the form in which the program is run on them."""

    @abstractmethod
    def laws(self, moments: Tensors) -> dict[str, Law]:
        """The laws of its sites' values."""

    def natural(self, moments: Tensors, gradients: Tensors) -> Tensors:
        """The best natural parameters, from the gradient of E log p in the mean parameters.

        They are that gradient, unless the moments are in another form.
        """
        return gradients

    def between(self, old: Tensors, new: Tensors, rate: Tensor) -> Tensors:
        """What lies part of the way from one factor to another, in natural parameters."""
        return tuple(a + rate * (b - a) for a, b in zip(old, new, strict=True))

    @abstractmethod
    def distributions(self, natural: Tensors) -> dict[str, Any]:
        """q of each site by itself, ``[*plates]`` of events."""

    @abstractmethod
    def starts(self, values: Mapping[str, Tensor], spread: float) -> Tensors:
        """Natural parameters of a factor around values of its sites."""

    @abstractmethod
    def entropy(self, natural: Tensors) -> Tensor:
        """``[*plates]``: -E log q."""

    @abstractmethod
    def draw(self, natural: Tensors, sample: Callable[[Family, Any], Tensor]) -> None:
        """Draw its sites, one after the other.

        Args:
            natural: parameters.
            sample: draws the site of a family from a distribution.
        """


@dataclass(frozen=True)
class Family(Factor):
    """The conjugate family of one site.

    Attributes:
        site: its name.
        shape: of a draw, ``[*plates, *event]``.
        event_dim: how many of its last dimensions are the event.
    """

    site: str
    shape: torch.Size
    event_dim: int

    @abstractmethod
    def law(self, moments: Tensors) -> Law:
        """The law of the site's value."""

    @abstractmethod
    def distribution(self, natural: Tensors) -> Any:
        """q as a distribution, ``[*plates]`` of events."""

    @abstractmethod
    def start(self, value: Tensor, spread: float) -> Tensors:
        """Natural parameters of a factor around a value."""

    def entropy(self, natural: Tensors) -> Tensor:
        """``[*plates]``: -E log q."""
        entropy: Tensor = self.distribution(natural).entropy()
        return entropy

    def laws(self, moments: Tensors) -> dict[str, Law]:
        return {self.site: self.law(moments)}

    def distributions(self, natural: Tensors) -> dict[str, Any]:
        return {self.site: self.distribution(natural)}

    def starts(self, values: Mapping[str, Tensor], spread: float) -> Tensors:
        return self.start(values[self.site], spread)

    def draw(self, natural: Tensors, sample: Callable[[Family, Any], Tensor]) -> None:
        sample(self, self.distribution(natural))


_FAMILIES: dict[str, Callable[..., Family]] = {}


def family(*priors: str) -> Callable[[Any], Any]:
    """Enter the family of sites with these priors, by the names of their classes."""

    def enter(one: Any) -> Any:
        for prior in priors:
            _FAMILIES[prior] = one
        return one

    return enter


def family_of(prior: str) -> Callable[..., Family] | None:
    """The family of sites with this prior; None where it is not conjugate to anything here."""
    return _FAMILIES.get(prior)


def families_known() -> list[str]:
    """The priors that have a family."""
    return sorted(_FAMILIES)
