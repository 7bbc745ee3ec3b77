"""Guides that draw some latents and leave the others to another guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, runtime_checkable

Guide = Callable[..., Any]


@runtime_checkable
class PartialGuide(Protocol):
    """A guide that ``fit`` completes once it knows the model.

    Attributes:
        drawn: the latents that it draws.
        rest: the guide of the other latents, anything that ``fit(guide=...)`` takes.
    """

    drawn: tuple[str, ...]
    rest: Any

    def completed(self, model: Callable[..., Any], rest: Guide | None) -> Guide:
        """The Pyro guide of all latents; ``rest`` is None where it leaves none to another guide."""


def is_partial(guide: Any) -> TypeGuard[PartialGuide]:
    """Whether a guide is to be completed."""
    return isinstance(guide, PartialGuide)
