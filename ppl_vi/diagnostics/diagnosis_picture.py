"""Pictures of a diagnosis: the bound, the weights, the sites and the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vi.diagnostics.calibration_picture import draw_ranks
from ppl_vi.diagnostics.colors import COLORS
from ppl_vi.diagnostics.pareto import usable
from ppl_vi.diagnostics.pictures import draw_elbo, style

if TYPE_CHECKING:
    import pandas as pd

    from ppl_vi.diagnostics.diagnosis import Diagnosis

Panel = Callable[[Axes], None]
_MOST_BARS, _FEWEST_BARS = 12, 4


def panels(diagnosis: Diagnosis) -> dict[str, Panel]:
    """What can be drawn of a diagnosis, by title."""
    made: dict[str, Panel] = {}
    if len(diagnosis.losses) > 1:
        made["ELBO"] = lambda axes: draw_elbo(axes, diagnosis.losses, diagnosis.elbo)
    if diagnosis.khat is not None:
        made["Importance weights"] = lambda axes: _weights(axes, diagnosis)
    if diagnosis.kl is not None:
        kl = diagnosis.kl.xs("all", level="dimension")["kl"].dropna()
        if len(kl):
            made["KL from the prior"] = lambda axes: _bars(axes, kl, "nats for each element")
    if diagnosis.signal is not None and len(diagnosis.signal):
        ratio = diagnosis.signal["ratio"].replace(math.inf, np.nan).dropna()
        made["Gradients"] = lambda axes: _bars(axes, ratio, "signal to noise", limit=1.0)
    if diagnosis.calibration is not None and diagnosis.calibration.ranks:
        made["Calibration"] = lambda axes: draw_ranks(axes, diagnosis.calibration)
    if diagnosis.nuts is not None and len(diagnosis.nuts):
        nuts = diagnosis.nuts
        made["Beside NUTS"] = lambda axes: _beside(axes, nuts)
    return made


def plot_diagnosis(diagnosis: Diagnosis) -> Figure:
    """All panels in one figure.

    Args:
        diagnosis: what was found.
    """
    drawn = panels(diagnosis)
    rows = max(1, math.ceil(len(drawn) / 2))
    figure = Figure(figsize=(11, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).reshape(-1)
    for axes, (title, draw) in zip(grid, drawn.items(), strict=False):
        style(axes)
        draw(axes)
        axes.set_title(title, loc="left")
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    return figure


def _weights(axes: Axes, diagnosis: Diagnosis) -> None:
    """The share of the weight that the largest of them have; of rows, their k-hats."""
    khat = diagnosis.khat
    if khat is None:
        return
    if khat.pointwise is not None and len(khat.pointwise) > 1:
        values = khat.pointwise.clamp(-1.0, 2.0).numpy()
        axes.hist(values, bins=30, color=COLORS[0])
        axes.axvline(usable(khat.num_draws), color=COLORS[1], linewidth=1.2, label="0.7")
        axes.set_xlabel("k-hat of a row")
        axes.set_ylabel("rows")
        return
    weights = np.sort(khat.log_weights.reshape(-1).exp().numpy())[::-1]
    count = np.arange(1, len(weights) + 1)
    axes.plot(count, weights.cumsum(), color=COLORS[0], linewidth=2, label="the guide")
    axes.plot(count, count / len(weights), color="#999999", linewidth=1, label="equal weights")
    axes.set_xscale("log")
    axes.set_xlabel("draws, the heaviest first")
    axes.set_ylabel("share of all weight")
    axes.legend(frameon=False, loc="upper left")


def _bars(axes: Axes, values: pd.Series, label: str, limit: float | None = None) -> None:
    """The largest values, by name."""
    shown = values.sort_values(ascending=False)[:_MOST_BARS][::-1]
    names = [_short(str(name)) for name in shown.index]
    axes.barh(range(len(shown)), shown.to_numpy(), color=COLORS[0], height=0.6)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5 - max(_FEWEST_BARS, len(shown)), len(shown) - 0.5)
    axes.set_xlabel(label)
    if limit is not None:
        axes.axvline(limit, color=COLORS[1], linewidth=1.2)


def _beside(axes: Axes, table: pd.DataFrame) -> None:
    """Guide and NUTS, each number as mean and standard deviation around NUTS's own."""
    shown = table.iloc[:_MOST_BARS]
    places = np.arange(len(shown))[::-1]
    axes.errorbar(
        np.zeros(len(shown)), places + 0.12, xerr=1.0, fmt="o", color="#999999", label="NUTS"
    )
    widths = 1 / shown["width"].clip(lower=1e-3)
    axes.errorbar(
        shown["shift"], places - 0.12, xerr=widths, fmt="o", color=COLORS[0], label="the guide"
    )
    axes.set_yticks(places, [_short(f"{s}[{n}]" if n else s) for s, n in shown.index])
    axes.set_ylim(len(shown) - 0.5 - max(_FEWEST_BARS, len(shown)), len(shown) - 0.5)
    axes.set_xlabel("mean ± standard deviation, in those of NUTS")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _short(name: str) -> str:
    return name if len(name) <= 24 else "…" + name[-23:]
