"""Guides by name: the engine looks names up here, and guides enter themselves when imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, runtime_checkable

from pyro.infer.autoguide import AutoGuide

from ppl_vi.starts import GuideStart

Guide = Callable[..., Any]


@runtime_checkable
class StartedGuide(Protocol):
    """A guide that ``fit`` hands the place to start from, before it is first called."""

    @property
    def started(self) -> bool:
        """Whether it has its parameters already, and goes on from where it is."""

    def start_at(self, start: GuideStart) -> None:
        """Begin there."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class FinishedGuide(Protocol):
    """A guide that has a last word when the steps of a fit are over."""

    def begin_fit(self, job: Any) -> None:
        """Steps are about to be taken, on this ``ppl_vi.job.Job``."""

    def finish_fit(self, job: Any) -> None:
        """They were taken."""


def has_last_word(guide: Any) -> TypeGuard[FinishedGuide]:
    """Whether a guide has a last word."""
    return isinstance(guide, FinishedGuide)


def takes_start(guide: Any) -> TypeGuard[StartedGuide]:
    """Whether a guide is to be told where to start."""
    return isinstance(guide, StartedGuide)


GuideBuilder = Callable[[Callable[..., Any], GuideStart], Guide]

SweptBuilder = Callable[[Callable[..., Any]], Guide]

_SWEPT: dict[str, SweptBuilder] = {}
_BUILDERS: dict[str, GuideBuilder] = {}


def autoguide_builder(family: type[AutoGuide]) -> GuideBuilder:
    """The builder of an autoguide class, which is given those of the settings that it knows.

    One that is a ``StartedGuide`` is handed the whole start.

    Args:
        family: the class.
    """
    accepted = inspect.signature(family).parameters

    def build(model: Callable[..., Any], start: GuideStart) -> Guide:
        guide: Guide = family(model, **{n: v for n, v in vars(start).items() if n in accepted})
        if takes_start(guide):
            guide.start_at(start)
        return guide

    return build


def register_guide(name: str, builder: GuideBuilder) -> None:
    """Make ``fit(model, name)`` build its guide with ``builder(model, start)``.

    Args:
        name: what a person writes.
        builder: takes the model, its enumerable sites hidden, and a ``GuideStart``.

    Raises:
        TypeError: the name is no string, or the builder no function.

    Example:
        >>> from pyro.infer.autoguide import AutoDiagonalNormal
        >>> from ppl_vi import register_guide
        >>> from ppl_vi.registry import autoguide_builder
        >>> register_guide("diagonal", autoguide_builder(AutoDiagonalNormal))
    """
    _check_entry(name, builder)
    _BUILDERS[name] = builder


def register_swept_guide(name: str, builder: SweptBuilder) -> None:
    """Make ``fit(model, name)`` build a guide of exact updates with ``builder(model)``.

    Args:
        name: what a person writes.
        builder: takes the model, and gives a ``SweptGuide``.
    """
    _check_entry(name, builder)
    _SWEPT[name] = builder


def _check_entry(name: Any, builder: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a guide is registered under a name, a string, not {name!r}.")
    if not callable(builder):
        raise TypeError(
            f"guide '{name}': the builder has to be a function that returns a guide, not {builder!r}. "
            f"For an autoguide class pass autoguide_builder(ItsClass)."
        )


def swept_builder(name: str) -> SweptBuilder | None:
    """The builder of a guide of exact updates; None where the name is that of another guide."""
    return _SWEPT.get(name)


def guide_builder(name: str) -> GuideBuilder:
    """The builder of a named guide.

    Raises:
        ValueError: no guide has that name.
    """
    if name not in _BUILDERS:
        known = ", ".join(f"'{known}'" for known in sorted({*_BUILDERS, *_SWEPT}))
        raise ValueError(
            f"unknown guide '{name}'. Use one of {known}, a Pyro guide or an autoguide."
        )
    return _BUILDERS[name]
