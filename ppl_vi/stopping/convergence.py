"""Does the bound still climb? A rule on the trace of losses alone.

The last part of the trace is cut into twenty equal pieces, and a line is laid through their means. What
it gains over half of that part is compared with its own standard error, taken from how the means lie
about the line.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ppl_vi.checkpoints import State

Tolerance = Literal["auto"] | float
"""A gain in nats below which to stop, or ``"auto"``, one that the noise hides."""

WINDOW = 1_000
"""Steps that the noise of a mean is counted over."""

_LOOKS, _BLOCKS = 10, 40
"""In a window: how often the rule looks at the trace, and how many blocks it is kept in."""
_FIRST = 1.7
"""Windows before the first look."""
_SHARE, _MORE = 0.52, 0.75
"""The part that is looked at: this share of the trace, and so many windows more. Being a share, it
holds a climb however slow, and lets go of it before the trace is twice as long."""
_PIECES = 20
_LIMIT = 1.45
"""Standard errors of the gain above which the bound climbs."""
SURE = 2.33
"""Likewise, where it is said to climb: one flat trace in a hundred is accused."""
_INDIFFERENT = 0.9
"""Standard errors of a window's mean that are too small a gain to go on for."""
_OUTLIER = 4.0
"""Robust standard deviations from a block's median at which a loss is cut off."""

Array = NDArray[np.float64]


class Look(NamedTuple):
    """What the rule saw at its last look.

    Attributes:
        start: the first step of the part that it looked at.
        gain: of the bound from the first to the second half of that part, in nats.
        standard_error: of the gain.
        level: the mean loss of that part.
        level_error: its standard error.
    """

    start: int
    gain: Array
    standard_error: Array
    level: Array
    level_error: Array

    @property
    def climbing(self) -> Any:
        """Whether the bound climbs beyond doubt."""
        return self.gain > SURE * self.standard_error

    def state(self) -> State:
        """As plain numbers, of one trace."""
        return self.start, *map(float, self[1:])

    @classmethod
    def of(cls, state: State) -> Look:
        """From what ``state`` gave."""
        start, *numbers = state
        return cls(start, *map(np.asarray, numbers))


class ConvergenceRule:
    """Says when a loss has stopped falling, from its noisy values alone.

    With y_1, ..., y_20 the means of equal pieces of the last part of the trace, b the slope of a line
    through them, and s the standard deviation about that line,

        gain = -10 b,  standard error = 10 s / sqrt(Σ_i (i - 10.5)²),

    it stops where ``gain < 1.45 standard errors + 0.9 s_window``, with s_window the standard error of
    the mean of one window; with a number for ``tol`` where gain (if any) and 2.33 standard errors are
    less. The last part is 52 % of the trace and three quarters of a window; the first look is after 1.7
    windows. Losses far from the median of their block are cut off, and those that are not finite left
    out. The decision does not depend on the unit of the losses, nor on how they are handed over.

    Args:
        window: steps, at least 40. What climbs less than its noise over as many is taken for flat.
        tol: ``"auto"``, or a gain in nats.

    Attributes:
        stopped: the number of steps after which it stopped, by trace; 0 where it did not yet.

    Raises:
        ValueError: the window is too short.

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).standard_normal(20_000)
        >>> climb = 10 * np.exp(-np.arange(20_000) / 500)
        >>> rule = ConvergenceRule()
        >>> rule.update(noise + climb)
        True
        >>> int(rule.stopped)
        4700

    Source: Dhaka et al. (2020) and Welandawe et al. (2022) for stopping by the noise of stationary
    steps; the line through batch means is ours.
    """

    def __init__(self, window: int = WINDOW, tol: Tolerance = "auto") -> None:
        if window < _BLOCKS:
            raise ValueError(f"window: {window} steps are too few. Give {_BLOCKS} or more.")
        self.window, self.tol = window, tol
        self._size = window // _BLOCKS
        self._means: Array = np.zeros(0)
        self._left: Array = np.zeros(0)
        self.stopped: Any = 0
        self.last: Look | None = None

    def update(self, losses: ArrayLike) -> Any:
        """Whether to stop, after more losses.

        Args:
            losses: ``[..., steps]``, the next ones; several traces at a time are judged each by itself.

        Returns:
            A bool, or a bool for each trace, ``[...]``.
        """
        left = _joined(self._left, np.asarray(losses, dtype=np.float64))
        whole = left.shape[-1] // self._size * self._size
        self._left = left[..., whole:]
        blocks = left[..., :whole].reshape(*left.shape[:-1], -1, self._size)
        known = self._means.shape[-1]
        self._means = _joined(self._means, _clipped_means(blocks))
        every, first = _BLOCKS // _LOOKS, int(_FIRST * _BLOCKS)
        for count in range(known // every * every + every, self._means.shape[-1] + 1, every):
            if count >= first:
                self._look(count)
        stops = np.asarray(self.stopped > 0)
        return stops if stops.ndim else stops.item()

    def _look(self, count: int) -> None:
        """Judge the trace as it was after so many blocks."""
        length = min(count, int(_SHARE * count + _MORE * _BLOCKS))
        start = count - length
        self.last = look = _line(self._means[..., start:count], start * self._size)
        if self.tol == "auto":
            one_window = look.level_error * (length / _BLOCKS) ** 0.5
            rests = look.gain <= _LIMIT * look.standard_error + _INDIFFERENT * one_window
        else:  # a fall by chance does not make up for noise
            rests = np.maximum(look.gain, 0) <= self.tol - SURE * look.standard_error
        # No comparison holds where a piece has no number.
        self.stopped = np.where(rests & (self.stopped == 0), count * self._size, self.stopped)

    def state(self) -> State:
        """All that it has seen of one trace, for another one to go on with."""
        return {
            "means": torch.from_numpy(self._means),
            "left": torch.from_numpy(self._left),
            "stopped": int(self.stopped),
            "last": self.last and self.last.state(),
        }

    def go_on(self, state: State) -> None:
        """Go on where another one was."""
        self._means, self._left = state["means"].numpy(), state["left"].numpy()
        self.stopped, last = state["stopped"], state["last"]
        self.last = last and Look.of(last)


def stop_step(losses: ArrayLike, window: int = WINDOW, tol: Tolerance = "auto") -> Any:
    """After how many steps the rule stops on whole traces; 0 where it does not.

    Args:
        losses: ``[..., steps]``.
        window: as in ``ConvergenceRule``.
        tol: likewise.
    """
    rule = ConvergenceRule(window, tol)
    rule.update(losses)
    return rule.stopped


def _joined(before: Array, new: Array) -> Array:
    known = np.broadcast_to(before, (*new.shape[:-1], before.shape[-1]))
    joined: Array = np.concatenate([known, new], -1)
    return joined


def _clipped_means(blocks: Array) -> Array:
    """``[..., blocks]`` from ``[..., blocks, size]``: means of what is finite, outliers cut off."""
    if not blocks.size:
        return blocks[..., 0]
    finite = np.isfinite(blocks)
    if finite.all():
        center = _middle(blocks)
        reach = _OUTLIER * 1.4826 * _middle(np.abs(blocks - center))
        clipped: Array = np.clip(blocks, center - reach, center + reach).mean(-1)
        return clipped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice|Mean of empty slice", RuntimeWarning)
        known = np.where(finite, blocks, np.nan)
        center = np.nanmedian(known, -1, keepdims=True)
        reach = _OUTLIER * 1.4826 * np.nanmedian(np.abs(known - center), -1, keepdims=True)
        means: Array = np.nanmean(np.clip(known, center - reach, center + reach), -1)
    return means


def _middle(blocks: Array) -> Array:
    """``[..., 1]``, the upper median; NumPy's own takes several times as long for so few numbers."""
    place = blocks.shape[-1] // 2
    return np.partition(blocks, place, -1)[..., place, None]


def _line(means: Array, start: int) -> Look:
    """The line through the means of twenty pieces; blocks without a number are left out."""
    edges = np.linspace(0, means.shape[-1], _PIECES + 1).astype(int)[:-1]
    known = np.isfinite(means)
    with np.errstate(divide="ignore", invalid="ignore"):
        pieces = np.add.reduceat(np.where(known, means, 0.0), edges, -1)
        pieces = pieces / np.add.reduceat(known, edges, -1)
    level = pieces.mean(-1)
    away = pieces - level[..., None]
    slope = away @ _PLACES / (_PLACES @ _PLACES)
    spread = np.sqrt(((away - slope[..., None] * _PLACES) ** 2).sum(-1) / (_PIECES - 2))
    half = _PIECES / 2
    gain_error = half * spread / (_PLACES @ _PLACES) ** 0.5
    return Look(start, -half * slope, gain_error, level, spread / _PIECES**0.5)


_PLACES = np.arange(_PIECES) - (_PIECES - 1) / 2
