"""Ranks of the truth among posterior draws, as histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vi.diagnostics.colors import COLORS
from ppl_vi.diagnostics.pictures import style

if TYPE_CHECKING:
    from ppl_vi.diagnostics.calibration import Calibration

_BINS, _MOST = 10, 12


def plot_calibration(calibration: Calibration) -> Figure:
    """A histogram for each number, the worst 12 of them, with the band where an exact guide's lie.

    Args:
        calibration: what was found.
    """
    worst = _worst(calibration)[:_MOST]
    rows = max(1, -(-len(worst) // 3))
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False).reshape(-1)
    for axes, number in zip(grid, worst, strict=False):
        style(axes)
        _histogram(axes, calibration, number)
    for axes in grid[len(worst) :]:
        axes.set_axis_off()
    return figure


def draw_ranks(axes: Axes, calibration: Calibration | None) -> None:
    """The histogram of the worst number."""
    if calibration is not None:
        _histogram(axes, calibration, _worst(calibration)[0])


def _worst(calibration: Calibration) -> list[int]:
    p = calibration.table[["p_symmetry", "p_uniformity"]].min(axis=1).to_numpy()
    return [int(number) for number in np.argsort(p, kind="stable")]


def _histogram(axes: Axes, calibration: Calibration, number: int) -> None:
    from scipy.stats import binom  # heavy, and not every fit needs it

    every = np.concatenate([r.reshape(len(r), -1).numpy() for r in calibration.ranks.values()], 1)
    size = len(every)
    low, high = binom.ppf([0.005, 0.995], size, 1 / _BINS)
    flagged = bool(calibration.table["flagged"].iloc[number])
    axes.axhspan(low, high, color="#DDDDDD", zorder=0)
    axes.hist(
        every[:, number], bins=_BINS, range=(0, 1), color=COLORS[1 if flagged else 0], rwidth=0.9
    )
    site, place = calibration.table.index[number]
    axes.set_xlabel(f"rank of the true {site}[{place}]" if place else f"rank of the true {site}")
    axes.set_ylabel("data sets")
