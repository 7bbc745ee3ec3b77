"""Pictures of a fit, as Matplotlib figures of their own: no window, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from torch import Tensor

from ppl_vi.diagnostics.colors import COLORS

_INK = "#444444"
_WINDOW, _FEW_STEPS = 100, 60
_THIN_ELLIPSES = 40
_GAMMA = 2.2


def elbo_curve(losses: Tensor, elbo: float) -> Figure:
    """The ELBO of each step and its running mean, from where the first climb is over.

    The mean is that of the last 100 steps, or of the last fifth where that is less, so that the first
    wild steps are soon forgotten. Steps that are not finite are left out.

    Args:
        losses: ``[num_steps]``, minus the estimate of each step, in nats.
        elbo: the final value, in nats; an ``Estimate`` is shown with its standard error.

    Example:
        >>> figure = elbo_curve(-torch.arange(100.0), elbo=99.0)
    """
    figure, axes = _figure(("step", "ELBO (nats)"), height=4.2)
    draw_elbo(axes, losses, elbo)
    return figure


def draw_elbo(axes: Axes, losses: Tensor, elbo: float) -> None:
    """Draw what ``elbo_curve`` shows.

    Args:
        axes: where to.
        losses: ``[num_steps]``, minus the estimate of each step, in nats.
        elbo: the final value, in nats; an ``Estimate`` is shown with its standard error.
    """
    values = -_array(losses).astype(float)
    steps = _steps(values)[np.isfinite(values)]
    values = values[np.isfinite(values)]
    marker = "." if len(values) < _FEW_STEPS else None
    thin: dict[str, Any] = {"color": COLORS[5], "alpha": 0.45, "linewidth": 0.5, "marker": marker}
    axes.plot(steps, values, label="each step", **thin)
    axes.plot(steps, _running_mean(values), color=COLORS[0], linewidth=1.8, label="running mean")
    axes.axhline(elbo, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label=_final(elbo))
    settled = np.append(values[len(values) // 4 :], elbo)
    settled = settled[np.isfinite(settled)]
    low, high = np.quantile(settled, [0.002, 0.998]) if len(settled) else (-1.0, 1.0)
    margin = 0.25 * (high - low) + 1e-6 * max(1.0, abs(high))
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, max(1, len(losses)))
    legend = axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(0.975, 0.0))
    for handle in legend.get_lines():
        handle.set(linewidth=1.8, alpha=1.0)


def mixture_picture(
    data: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    responsibilities: Tensor,
    labels: Sequence[str],
) -> Figure:
    """Data of two dimensions, coloured by responsibility, with each component's 2-sigma ellipse.

    The thick ellipse is that of the posterior means, the thin ones those of single draws, which show
    how well it is known. The legend has the weights, mean ± standard deviation.

    Args:
        data: ``[N, 2]``.
        means: ``[num_draws, K, 2]``, posterior draws of the component means, in the data's unit.
        covariances: ``[num_draws, K, 2, 2]``, of their covariances.
        weights: ``[num_draws, K]``, of their weights.
        responsibilities: ``[N, K]``.
        labels: of the two axes, with units.

    Example:
        >>> draws = 3
        >>> figure = mixture_picture(
        ...     torch.randn(9, 2), torch.zeros(draws, 1, 2), torch.eye(2).expand(draws, 1, 2, 2),
        ...     torch.ones(draws, 1), torch.ones(9, 1), ("x", "y"))
    """
    figure, axes = _figure(labels, height=5)
    palette = np.array([to_rgb(COLORS[k % len(COLORS)]) for k in range(means.shape[1])])
    # Light adds up, so colours are mixed as light: halfway between two is not a murky dark one.
    blend = (_array(responsibilities) @ palette**_GAMMA).clip(0, 1) ** (1 / _GAMMA)
    x, y = _array(data).T
    axes.scatter(x, y, c=blend, s=30, alpha=0.85, edgecolors="white", linewidths=0.5)
    for k, color in enumerate(palette):
        for s in range(min(_THIN_ELLIPSES, len(means))):
            _ellipse(axes, means[s, k], covariances[s, k], color, linewidth=0.6, alpha=0.22)
        _ellipse(axes, means[:, k].mean(0), covariances[:, k].mean(0), color, linewidth=2.4)
    _mixture_legend(figure, axes, weights, palette)
    return figure


def _mixture_legend(figure: Figure, axes: Axes, weights: Tensor, palette: np.ndarray) -> None:
    """Weights by component, and what the lines are; beside the axes where it would hide the data."""
    shares, spreads = _array(weights.mean(0)), _array(weights.std(0, correction=0))
    entries = [
        (
            Line2D([], [], color=color, marker="o", linestyle=""),
            f"weight {share:.2f} ± {spread:.2f}",
        )
        for color, share, spread in zip(palette, shares, spreads, strict=True)
    ][: len(COLORS)]
    if len(palette) > len(entries):
        entries.append((Line2D([], [], linestyle=""), f"and {len(palette) - len(entries)} more"))
    entries += [
        (Line2D([], [], color=_INK, linewidth=2.4), "2-sigma ellipse, posterior mean"),
        (Line2D([], [], color=_INK, linewidth=0.6), "single posterior draws"),
    ]
    handles, names = zip(*entries, strict=True)
    if len(palette) <= 2:
        axes.legend(handles, names, frameon=False, loc="upper left")
    else:
        figure.legend(handles, names, frameon=False, loc="outside right upper")


def _figure(labels: Sequence[str], height: float) -> tuple[Figure, Axes]:
    """Empty axes without a frame, 7.5 inches wide."""
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.subplots()
    dress(axes, labels)
    return figure, axes


def dress(axes: Axes, labels: Sequence[str]) -> None:
    """Label axes and take their frame away."""
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    style(axes)


def style(axes: Axes) -> None:
    """Axes without a frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_INK)
    axes.tick_params(color=_INK)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """``[num_steps]``: at each step the mean of the last 100 values, or of the last fifth."""
    windows = [values[step - max(1, min(_WINDOW, step // 5)) : step] for step in _steps(values)]
    return np.array([window.mean() for window in windows])


def _steps(values: np.ndarray) -> np.ndarray:
    return np.arange(1, len(values) + 1)


def _ellipse(axes: Axes, mean: Tensor, covariance: Tensor, color: Any, **style: float) -> None:
    """The 2-sigma ellipse of a Gaussian of two dimensions."""
    variances, directions = torch.linalg.eigh(covariance)
    width, height = (4 * variances.clamp(min=0).sqrt()).tolist()
    angle = torch.rad2deg(torch.atan2(directions[1, 0], directions[0, 0])).item()
    center = (mean[0].item(), mean[1].item())
    axes.add_patch(
        Ellipse(center, width, height, angle=angle, fill=False, edgecolor=color, **style)
    )


def _final(elbo: float) -> str:
    return f"final: {elbo}".replace("-", "\N{MINUS SIGN}")


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array
