"""Does the bound still climb? A rule on the trace of losses alone.

A line is laid through the last part of the trace, and its gain over half of that part is compared
with its own standard error. The noise is what is left about a cubic, so that a climb which bends is not
taken for noise, and neighbouring blocks of it may depend on one another.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ppl_vi.checkpoints import State

Tolerance = Literal["auto"] | float
"""A gain in nats below which to stop, or ``"auto"``, one that the noise hides."""

WINDOW = 1_000
"""Steps that the noise of a mean is counted over."""

_BLOCKS = 40
"""Blocks that a window is kept in."""
_FIRST = 2 * _BLOCKS
"""Blocks before the first look: a flat trace may take two windows, and a slow climb needs them."""
_LIMIT, _FIRST_LIMIT = 2.1, 2.3
"""Standard errors of the gain above which the bound climbs, and those at the first look: it alone must
let a flat trace go, and the later ones are many."""
SURE = 2.33
"""Likewise, where it is said to climb: one flat trace in a hundred is accused."""
_INDIFFERENT = 0.375
"""Standard errors of a window's mean that are too small a gain to go on for: what an exponential brings
at most after its remaining gain has come down to one."""
_STRONGEST = 0.9
"""The most that a block may depend on the one before."""
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

    With y_1, ..., y_n the means of the last blocks of a fortieth of a window, b the slope of a line
    through them, s and r the standard deviation about a cubic and its correlation from one block to the
    next (0 where it is negative),

        gain = -b n/2,  standard error = s √((1 + r) / (1 - r)) n/2 / √(Σ_i (i - (n + 1)/2)²),

    it stops where ``gain < 2.1 standard errors + 0.375 s_window``, with s_window the standard error of
    the mean of one window, and 2.3 for 2.1 at the first look, after two windows; with a number for
    ``tol`` where gain (if any) and 2.33 standard errors are less. The last part is a window and half of
    the trace, less half of what passes before the next look: all that is flat when a stop is due.
    Losses far from the median of their block are cut off, and those that are not finite left out; where
    a whole block is not, it does not stop. The decision does not depend on the unit of the losses, nor
    on how they are handed over.

    Args:
        window: steps, at least 40. What climbs less than its noise over two of them is taken for flat.
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
        5000

    Source: Dhaka et al. (2020) and Welandawe et al. (2022) for stopping by the noise of stationary
    steps; the line against the noise of dependent blocks is ours.
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
        for count in range(max(known + 1, _FIRST), self._means.shape[-1] + 1):
            wait = _wait(count)
            if count % wait == 0:
                # What rests since before that step must have been let go at an earlier look.
                self._look(count, -(-(count + wait) // 2) - _BLOCKS)
        stops = np.asarray(self.stopped > 0)
        return stops if stops.ndim else stops.item()

    def _look(self, count: int, start: int) -> None:
        """Judge the trace as it was after so many blocks, from a block on."""
        self.last = look = _line(self._means[..., start:count], start * self._size)
        if self.tol == "auto":
            one_window = look.level_error * ((count - start) / _BLOCKS) ** 0.5
            limit = _FIRST_LIMIT if count == _FIRST else _LIMIT
            rests = look.gain <= limit * look.standard_error + _INDIFFERENT * one_window
        else:  # a fall by chance does not make up for noise
            rests = np.maximum(look.gain, 0) <= self.tol - SURE * look.standard_error
        # No comparison holds where a block has no number.
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


def _wait(count: int) -> int:
    """Blocks from one look to the next, a power of two: some 2 % of those that there are."""
    return 1 << ((count // _BLOCKS).bit_length() - 1)


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
    if before.ndim < new.ndim:  # the first of several traces
        before = np.broadcast_to(before, (*new.shape[:-1], before.shape[-1]))
    joined: Array = np.concatenate([before, new], -1)
    return joined


def _clipped_means(blocks: Array) -> Array:
    """``[..., blocks]`` from ``[..., blocks, size]``: means of what is finite, outliers cut off."""
    if not blocks.size:
        return blocks[..., 0]
    finite = np.isfinite(blocks)
    if finite.all():
        center = _middle(blocks)
        reach = _OUTLIER * 1.4826 * _middle(np.abs(blocks - center))
        clipped = np.minimum(np.maximum(blocks, center - reach), center + reach)
        clipped_means: Array = np.add.reduce(clipped, -1) / blocks.shape[-1]
        return clipped_means
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
    """The line through the means, and the noise about a cubic."""
    count = means.shape[-1]
    curves, half = _curves(count)
    level = means.mean(-1)
    away = means - level[..., None]
    along = away @ curves
    noise = away - along @ curves.T
    squares = (noise * noise).sum(-1)
    follows = (noise[..., 1:] * noise[..., :-1]).sum(-1) / np.maximum(squares, _LEAST)
    # About a cubic neighbours look less alike than they are, by (4 + 6 r) / count.
    follows = np.minimum(np.maximum((count * follows + 4) / (count - 6), 0.0), _STRONGEST)
    spread = np.sqrt(squares / (count - 4) * (1 + follows) / (1 - follows))
    return Look(start, -half * along[..., 0], half * spread, level, spread / count**0.5)


@lru_cache(maxsize=64)
def _curves(count: int) -> tuple[Array, float]:
    """Orthonormal polynomials of degree 1 to 3, ``[count, 3]``, and what the first gains over half."""
    place = np.arange(count) - (count - 1) / 2
    square = (place**2).mean()
    cube = place**3 - (place**4).mean() / square * place
    curves = np.stack([place, place**2 - square, cube], -1)
    lengths = np.sqrt((curves**2).sum(0))
    return curves / lengths, float(count / 2 / lengths[0])


_LEAST = np.finfo(np.float64).tiny
