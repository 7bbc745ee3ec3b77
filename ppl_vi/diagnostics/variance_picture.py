"""A picture of what gradients cost: noise against time, estimator by estimator."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ppl_vi.diagnostics.colors import COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_INK, _LINES = "#444444", "#DDDDDD"
_DISTANCES = (9, 20, 34, 50, 70, 95)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def plot_gradient_variance(table: pd.DataFrame, axis: Axes | None = None) -> Figure:
    """Total variance of one gradient against the seconds it takes, both logarithmic.

    On each grey line variance x seconds is the same, and so is the error after a given time: the
    lower the line, the better the estimator. One without noise has no place on the axis and stands
    at its foot, hollow.

    Args:
        table: from ``gradient_variance``; variances are summed over its parameters.
        axis: where to draw; by default a figure of its own.

    Returns:
        The figure.

    Example:
        >>> import pandas as pd
        >>> rows = pd.MultiIndex.from_product(
        ...     [["pathwise", "score"], ["loc"]], names=["estimator", "parameter"])
        >>> table = pd.DataFrame({"variance": [0.1, 2.0], "seconds": [2e-3, 1e-3]}, index=rows)
        >>> figure = plot_gradient_variance(table)
    """
    if axis is None:
        from matplotlib.figure import Figure  # heavy, and not every fit needs it

        figure = Figure(figsize=(7.5, 5), layout="constrained")
        axis = figure.subplots()
    else:
        found = axis.get_figure(root=True)
        if found is None:
            raise ValueError("axis: it belongs to no figure. Make it with figure.subplots().")
        figure = found
    grouped = table.groupby(level="estimator", sort=False)
    seconds, variance = grouped["seconds"].first(), grouped["variance"].sum()
    noisy = variance[variance > 0]
    foot = noisy.min() / 30 if len(noisy) else 1.0
    heights = variance.where(variance > 0, foot)
    _scales(axis)
    _limits(axis, seconds.to_numpy(), heights.to_numpy())
    _equal_work(axis)
    names = [n if variance[n] > 0 else f"{n} (no noise)" for n in seconds.index]
    for index, name in enumerate(seconds.index):
        color = COLORS[index % len(COLORS)]
        inside = color if variance[name] > 0 else "white"
        marker = axis.scatter(seconds[name], heights[name], s=55, color=inside, zorder=3)
        marker.set(edgecolor=color, linewidth=1.6, label=names[index])
    _label(figure, axis, names, np.column_stack([seconds, heights]))
    return figure


def _scales(axis: Axes) -> None:
    from ppl_vi.diagnostics.pictures import dress  # heavy, and not every fit needs it

    axis.set_xscale("log")
    axis.set_yscale("log")
    labels = "seconds for one gradient (median)", "variance of one gradient (sum over parameters)"
    dress(axis, labels)


def _limits(axis: Axes, seconds: np.ndarray, heights: np.ndarray) -> None:
    """Around all markers, with room for their labels."""
    low, high = np.log10(seconds.min()), np.log10(seconds.max())
    margin = max(0.25, 0.35 * (high - low))
    axis.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    low, high = np.log10(heights.min()), np.log10(heights.max())
    margin = max(0.3, 0.12 * (high - low))
    axis.set_ylim(10 ** (low - margin), 10 ** (high + margin))


def _equal_work(axis: Axes) -> None:
    """Lines of equal variance x seconds, so many as the eye bears."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    first, last = math.log10(left * bottom), math.log10(right * top)
    step = max(1, math.ceil((last - first) / 12))
    for power in range(math.ceil(first / step) * step, math.floor(last) + 1, step):
        ends = np.array([left, right])
        axis.plot(ends, 10.0**power / ends, color=_LINES, linewidth=0.9, zorder=1)
    factor = "10" if step == 1 else f"10$^{{{step}}}$"
    told = f"grey: equal variance × seconds, a factor of {factor} from line to line"
    axis.set_title(told, fontsize="small", color=_INK, loc="left")


def _label(figure: Figure, axis: Axes, names: list[str], points: np.ndarray) -> None:
    """Name each marker beside it or, where names would cover each other, number them."""
    figure.draw_without_rendering()  # where things are is known only now
    centers = axis.transData.transform(points)
    size = 7 * figure.dpi / 72
    from matplotlib.transforms import Bbox

    taken = [Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size) for x, y in centers]
    placed: list[Annotation] = []
    for name, point in zip(names, points, strict=True):
        text = _beside(axis, name, point, taken)
        if text is None:
            for other in placed:
                other.remove()
            _number(axis, names, points)
            return
        placed.append(text)
        taken.append(text.get_window_extent())


def _beside(axis: Axes, name: str, point: np.ndarray, taken: list[Bbox]) -> Annotation | None:
    """The name where it covers nothing and is not cut; ``None`` if there is no such place."""
    frame = axis.get_window_extent()
    for distance, (right, up) in product(_DISTANCES, _DIRECTIONS):
        text = _named(axis, name, point, (right * distance, up * distance))
        box = text.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return text
        text.remove()
    return None


def _number(axis: Axes, names: list[str], points: np.ndarray) -> None:
    """Numbers in the markers, and a list of what they are."""
    for number, point in enumerate(points, 1):
        axis.text(
            point[0], point[1], str(number), ha="center", va="center_baseline", fontsize=6, zorder=4
        )
    markers = [each for each in axis.collections if each.get_label() in names]
    for marker in markers:
        marker.set(sizes=[90], facecolor="white")
    numbered = [f"{number}  {name}" for number, name in enumerate(names, 1)]
    axis.legend(
        markers, numbered, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )


def _named(axis: Axes, name: str, point: np.ndarray, offset: tuple[float, float]) -> Annotation:
    """The name beside its marker, with a line to it where it is far away."""
    far = max(map(abs, offset)) > _DISTANCES[0]
    return axis.annotate(
        name,
        (point[0], point[1]),
        offset,
        textcoords="offset points",
        fontsize="small",
        color=_INK,
        ha=("right", "center", "left")[int(np.sign(offset[0])) + 1],
        va=("top", "center", "bottom")[int(np.sign(offset[1])) + 1],
        arrowprops={"arrowstyle": "-", "color": _INK, "linewidth": 0.5} if far else None,
        zorder=4,
    )
