"""The convergence rule on synthetic traces, beside two others: does it stop too soon, or not at all?

Prints a Markdown table. A stop is premature before the first step whose remaining gain is under one
standard error of a window's mean (of the noise's own standard error, where its values depend on one
another), and missed if there is none within twice that step plus a window. A second table is of traces
that no rule could judge so well, since what tells them from rest comes too late.

Usage: python -m benchmarks.stop_rule [--traces N] [--window N] [--seed N] [--ours]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from ppl_vi.stopping.convergence import WINDOW, stop_step

Array = NDArray[np.float64]
_AT_ONCE = 4_000_000


class Noise(NamedTuple):
    """Noise of scale 1.

    Attributes:
        draw: from a generator and a shape.
        spread: standard error of a mean, times the root of the number of its terms; for a distribution
            without a variance that of a Normal with the same quartiles.
    """

    draw: Callable[[np.random.Generator, tuple[int, int]], Array]
    spread: float = 1.0


def _dependent(correlation: float) -> Noise:
    def draw(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        steps = generator.standard_normal((shape[0], shape[1] + 500))
        scale = (1 - correlation**2) ** 0.5
        return np.asarray(lfilter([scale], [1.0, -correlation], steps, axis=-1))[:, 500:]

    return Noise(draw, ((1 + correlation) / (1 - correlation)) ** 0.5)


def _with_slow_part(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    slow = _dependent(0.98).draw(generator, shape)
    return np.asarray(0.98**0.5 * generator.standard_normal(shape) + 0.02**0.5 * slow)


def _calming(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    scale = 1 + 4 * np.exp(-np.arange(shape[1]) / 500)
    return np.asarray(scale * generator.standard_normal(shape))


NOISES = {
    "Normal": Noise(lambda generator, shape: generator.standard_normal(shape)),
    "Student, 3 degrees": Noise(lambda g, shape: g.standard_t(3, shape) / 3**0.5),
    "Student, 2 degrees": Noise(lambda g, shape: g.standard_t(2, shape)),
    "skewed (exponential)": Noise(lambda g, shape: g.standard_exponential(shape) - 1),
    "autocorrelated 0.5": _dependent(0.5),
    "autocorrelated 0.9": _dependent(0.9),
    "autocorrelated 0.95": _dependent(0.95),
}
OTHER_NOISES = {
    "autocorrelated 0.98": _dependent(0.98),
    "2 % of it autocorrelated 0.98": Noise(_with_slow_part, (0.98 + 0.02 * 99) ** 0.5),
    "five times as large at first": Noise(_calming),
}


_ALL = NOISES | OTHER_NOISES


@dataclass(frozen=True)
class Family:
    """Traces of one kind.

    Attributes:
        name: in words.
        excess: the remaining gain at each step, in standard deviations of the noise, from windows done.
        noise: by name.
        longest: windows to look for the ideal step.
    """

    name: str
    excess: Callable[[Array], Array]
    noise: str = "Normal"
    longest: int = 200

    def ideal(self, window: int) -> int:
        """The first step with a remaining gain under one standard error of a window's mean."""
        step = np.arange(self.longest * window)
        above = self.excess(step / window) >= _ALL[self.noise].spread / window**0.5
        return int(np.flatnonzero(above)[-1]) + 1 if above.any() else 0

    def traces(self, count: int, window: int, generator: np.random.Generator) -> Iterator[Array]:
        """Losses ``[some, steps]`` of every trace, until it must have stopped."""
        steps = 2 * (self.ideal(window) + window)
        mean = self.excess(np.arange(steps) / window)
        at_once = max(1, _AT_ONCE // steps)
        for first in range(0, count, at_once):
            shape = min(at_once, count - first), steps
            yield mean + _ALL[self.noise].draw(generator, shape)


def _falling(height: float, time: float) -> Callable[[Array], Array]:
    return lambda t: height * np.exp(-t / time)


def _drifting(height: float, time: float) -> Callable[[Array], Array]:
    return lambda t: height * np.clip(1 - t / time, 0, None)


def _power(height: float, rate: float, power: float) -> Callable[[Array], Array]:
    return lambda t: height / (1 + rate * t) ** power


def _two_levels(height: float, time: float, length: float, then: float) -> Callable[[Array], Array]:
    """A fall to a first level, which is left after that many windows for a second one."""
    end = (3 * time if height else 0) + length
    return lambda t: height * np.exp(-t / time) + then * (t < end)


FAMILIES = [
    *(Family(f"flat, {noise}", np.zeros_like, noise) for noise in NOISES),
    *(
        Family(f"exponential, {height} sd, {time} windows", _falling(height, time))
        for height in (3, 30, 300)
        for time in (0.1, 0.3, 1.0, 3.0)
    ),
    *(
        Family(f"exponential, 10 sd, 0.5 windows, {noise}", _falling(10, 0.5), noise)
        for noise in NOISES
    ),
    *(
        Family(f"drift of {height} sd over {time} windows", _drifting(height, time))
        for height, time in ((1, 2), (2, 5), (5, 10), (10, 20), (0.75, 3), (1.25, 5), (5, 20))
    ),
    Family(
        "drift of 2 sd over 4 windows, Student, 3 degrees", _drifting(2, 4), "Student, 3 degrees"
    ),
    Family("exponential, 2 sd, 0.6 windows", _falling(2, 0.6)),
    Family("exponential, 1 sd, 1.0 windows", _falling(1, 1.0)),
    Family("power law, 30 sd / (1 + 10 windows)²", _power(30, 10, 2)),
    Family("power law, 10 sd / (1 + 2 windows)³", _power(10, 2, 3)),
    *(
        Family(
            f"{'a climb, then ' if height else ''}two levels, {then} sd apart, first for {length} "
            "windows",
            _two_levels(height, time, length, then),
        )
        for height, time, length, then in (
            (0, 1.0, 0.5, 1),
            (0, 1.0, 0.5, 0.2),
            (0, 1.0, 0.5, 5),
            (0, 1.0, 0.25, 0.5),
            (0, 1.0, 0.05, 1),
            (30, 0.1, 0.5, 1),
        )
    ),
]
LIMITS = [
    *(
        Family(f"drift of {height} sd over {time} windows", _drifting(height, time))
        for height, time in ((0.75, 5), (0.9, 5), (1, 5), (1.1, 5), (4, 20))
    ),
    Family("exponential, 1 sd, 3.0 windows", _falling(1, 3.0)),
    Family("power law, 30 sd / (1 + windows)²", _power(30, 1, 2)),
    *(Family(f"flat, {noise}", np.zeros_like, noise) for noise in OTHER_NOISES),
]


def ours(losses: Array, window: int) -> Array:
    """The library's rule."""
    return np.asarray(stop_step(losses, window))


def relative_change(losses: Array, window: int) -> Array:
    """PyMC's CheckParametersConvergence, on the losses: mean relative change under 0.1 % a look."""
    means = _means(losses, window // 10)
    change = np.abs(np.diff(means)) / np.maximum(np.abs(means[:, :-1]), 1e-8)
    return _first(change < 1e-3, window // 10, 2)


def cumulative_sum(losses: Array, window: int) -> Array:
    """A one-sided test of level shift on block means of the last window, at 1 % a look.

    The range of cumulated deviations from the window's mean, over their noise, is under that of a
    Brownian bridge: P(sup > c) = exp(-2 c²).
    """
    means, size = _means(losses, window // 20), window // 20
    rests = np.zeros(means.shape, dtype=bool)
    for end in range(20, means.shape[1] + 1):
        part = means[:, end - 20 : end]
        noise = np.sqrt((np.diff(part) ** 2).mean(-1) / 2)
        sums = np.cumsum(part - part.mean(-1, keepdims=True), -1)
        rests[:, end - 1] = sums.max(-1) < (np.log(100) / 2) ** 0.5 * noise * 20**0.5
    return _first(rests, size, 1)


def _means(losses: Array, size: int) -> Array:
    whole = losses.shape[1] // size * size
    return losses[:, :whole].reshape(len(losses), -1, size).mean(-1)


def _first(rests: Array, size: int, offset: int) -> Array:
    return np.where(rests.any(-1), (rests.argmax(-1) + offset) * size, 0)


RULES = {"ours": ours, "cumulative sum": cumulative_sum, "relative change": relative_change}


def judged(
    family: Family, rule: Callable[[Array, int], Array], count: int, window: int, seed: int
) -> tuple[float, float, float]:
    """The parts of traces with a premature and with a missed stop, and the median stop."""
    traces = family.traces(count, window, np.random.default_rng(seed))
    stop = np.concatenate([rule(losses, window) for losses in traces])
    made = stop[stop > 0]
    middle = float(np.median(made)) if len(made) else 0.0
    return ((stop > 0) & (stop < family.ideal(window))).mean(), (stop == 0).mean(), middle


def _table(families: list[Family], rules: list[str], options: argparse.Namespace) -> None:
    names = " | ".join(f"{name}: premature | missed" for name in rules)
    print(f"| traces | ideal step | median stop | {names} |")
    print("|---" * (3 + 2 * len(rules)) + "|")
    for family in families:
        cells, median = [], 0.0
        for name in rules:
            premature, missed, middle = judged(
                family, RULES[name], options.traces, options.window, options.seed
            )
            cells.append(f"{premature:.2%} | {missed:.2%}")
            median = middle if name == "ours" else median
        ideal = family.ideal(options.window)
        print(f"| {family.name} | {ideal} | {median:.0f} | {' | '.join(cells)} |", flush=True)
    print()


def main() -> None:
    """Judge every rule on every family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=2_000)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ours", action="store_true", help="judge the library's rule alone")
    options = parser.parse_args()
    rules = ["ours"] if options.ours else list(RULES)
    _table(FAMILIES, rules, options)
    _table(LIMITS, ["ours"], options)


if __name__ == "__main__":
    main()
