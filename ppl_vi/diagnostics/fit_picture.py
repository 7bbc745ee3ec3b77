"""A picture of a whole fit: the curve of its bound, and the marginals of its posterior."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ppl_vi.diagnostics.colors import COLORS
from ppl_vi.diagnostics.pictures import draw_elbo, dress

_PANELS, _COLUMNS, _DENSITIES, _INTERVALS = 8, 4, 6, 60
_MOST_BINS = 40
_INTERVAL = (0.03, 0.97)


def fit_picture(
    losses: Tensor,
    elbo: float,
    stopped: str,
    averaged_from: int | None,
    draws: Mapping[str, Tensor],
) -> Figure:
    """The ELBO of each step with the stop point, and marginals of the sites below it.

    Sites of up to 6 elements are shown as densities, those of more as means and 94 % intervals of up
    to 60 elements, evenly spaced. Eight sites have a panel, further ones are named.

    Args:
        losses: ``[num_steps]``, minus the estimate of each step, in nats; none for a fit without steps.
        elbo: the final value, in nats.
        stopped: why the fit stopped, in words.
        averaged_from: the first step of the iterates that were averaged; None where there were none.
        draws: ``[num_draws, ...]`` of the posterior by site.

    Example:
        >>> figure = fit_picture(-torch.arange(99.0), 99.0, "done", 80, {"mean": torch.randn(50)})
    """
    shown = list(draws)[:_PANELS]
    rows, tall = ceil(len(shown) / _COLUMNS), len(losses) > 0
    heights = [1.4] * tall + [1.0] * rows
    figure = Figure(figsize=(10, 2.6 * max(1.0, sum(heights))), layout="constrained")
    columns = min(_COLUMNS, len(shown)) or 1
    grid = figure.add_gridspec(max(1, len(heights)), columns, height_ratios=heights or None)
    if tall:
        _curve(figure.add_subplot(grid[0, :]), losses, elbo, stopped, averaged_from)
    for index, name in enumerate(shown):
        axes = figure.add_subplot(grid[tall + index // _COLUMNS, index % _COLUMNS])
        _marginal(axes, name, draws[name])
    if len(draws) > len(shown):
        more = ", ".join(list(draws)[len(shown) : len(shown) + _PANELS])
        rest = " ..." if len(draws) > len(shown) + _PANELS else ""
        number = len(draws) - len(shown)
        figure.supxlabel(f"and {number} more sites: {more}{rest}", fontsize="small")
    return figure


def _curve(
    axes: Axes, losses: Tensor, elbo: float, stopped: str, averaged_from: int | None
) -> None:
    dress(axes, ("step", "ELBO (nats)"))
    if averaged_from is not None:
        axes.axvspan(
            averaged_from, len(losses), color=COLORS[2], alpha=0.12, lw=0, label="averaged"
        )
    axes.axvline(len(losses), color=COLORS[1], linewidth=1.6, label="stop")
    draw_elbo(axes, losses, elbo)
    axes.set_xlim(0, 1.02 * len(losses))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title(f"stopped after {len(losses)} steps: {stopped}", loc="left", fontsize="medium")


def _marginal(axes: Axes, name: str, draws: Tensor) -> None:
    values = draws.detach().cpu().double().reshape(len(draws), -1)
    if values.shape[1] <= _DENSITIES:
        dress(axes, ("", ""))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        for index in range(values.shape[1]):
            place = np.unravel_index(index, draws.shape[1:])
            label = ", ".join(str(number) for number in place) or None
            _density(axes, values[:, index].numpy(), COLORS[index], label)
        if draws.dim() > 1:
            axes.legend(frameon=False, fontsize="x-small", handlelength=1)
        axes.set_title(name, loc="left", fontsize="medium")
        return
    dress(axes, ("element", ""))
    count = values.shape[1]
    chosen = torch.linspace(0, count - 1, min(count, _INTERVALS)).round().long()
    part = values[:, chosen]
    low, high = part.quantile(torch.tensor(_INTERVAL, dtype=part.dtype), dim=0)
    axes.vlines(chosen, low, high, color=COLORS[5], linewidth=1.6)
    axes.plot(chosen, part.mean(0), ".", color=COLORS[0], markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    of = f" ({len(chosen)} of {count})" if count > len(chosen) else ""
    axes.set_title(f"{name}{of}", loc="left", fontsize="medium")


def _density(axes: Axes, values: np.ndarray[Any, Any], color: str, label: str | None) -> None:
    values = values[np.isfinite(values)]
    if not len(values) or np.ptp(values) <= 1e-9 * np.abs(values).max():  # a point
        axes.axvline(values[0] if len(values) else np.nan, color=color, label=label)
        return
    bins = max(5, min(_MOST_BINS, round(len(values) ** 0.5)))
    heights, edges = np.histogram(values, bins=bins, density=True)
    axes.stairs(heights, edges, color=color, fill=True, alpha=0.3)
    axes.stairs(heights, edges, color=color, linewidth=1.2, label=label)
