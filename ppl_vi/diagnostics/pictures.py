"""Pictures of a fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442")
"""Told apart with any colour vision (Okabe and Ito 2008)."""

_WINDOW = 100
_THIN_ELLIPSES = 30


def elbo_curve(losses: Tensor, elbo: float) -> Figure:
    """The ELBO of each step and its running mean, from where the first climb is over.

    Args:
        losses: ``[num_steps]``, minus the estimate of each step, in nats.
        elbo: the final value, in nats.

    Example:
        >>> figure = elbo_curve(-torch.arange(100.0), elbo=99.0)
    """
    values = -losses.numpy()
    window = max(1, min(_WINDOW, len(values) // 10))
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, color=COLORS[5], alpha=0.4, linewidth=0.6, label="each step")
    axes.plot(steps[window - 1 :], smooth, color=COLORS[0], label=f"mean of {window} steps")
    axes.axhline(elbo, color="black", linewidth=0.8, linestyle=":", label=f"final: {elbo:.1f}")
    low, high = np.quantile(values, [0.02, 1.0])
    margin = 0.05 * (high - low) + 1e-6
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.set_ylabel("ELBO (nats)")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def mixture_picture(
    data: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    responsibilities: Tensor,
    labels: Sequence[str],
) -> Figure:
    """Data of two dimensions, coloured by responsibility, with each component's 2-sigma ellipse.

    The thick ellipse is that of the posterior means, the thin ones those of single draws.

    Args:
        data: ``[N, 2]``.
        means: ``[num_draws, K, 2]``, posterior draws of the component means.
        covariances: ``[num_draws, K, 2, 2]``, of their covariances.
        weights: ``[num_draws, K]``, of their weights.
        responsibilities: ``[N, K]``.
        labels: of the two axes.

    Example:
        >>> draws = 3
        >>> figure = mixture_picture(
        ...     torch.randn(9, 2), torch.zeros(draws, 1, 2), torch.eye(2).expand(draws, 1, 2, 2),
        ...     torch.ones(draws, 1), torch.ones(9, 1), ("x", "y"))
    """
    palette = np.array([to_rgb(COLORS[k % len(COLORS)]) for k in range(means.shape[1])])
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    blend = responsibilities.numpy() @ palette
    first, second = data.T.numpy()
    axes.scatter(first, second, c=blend.clip(0, 1), s=22, alpha=0.75, linewidths=0)
    for k, color in enumerate(palette):
        for s in range(min(_THIN_ELLIPSES, len(means))):
            _ellipse(axes, means[s, k], covariances[s, k], color, linewidth=0.5, alpha=0.25)
        _ellipse(axes, means[:, k].mean(0), covariances[:, k].mean(0), color, linewidth=2.2)
        share, spread = weights[:, k].mean(), weights[:, k].std(correction=0)
        name = f"component {k + 1}: weight {share:.2f} ± {spread:.2f}"
        axes.plot(*means[:, k].mean(0), "+", color=color, markersize=11, mew=2.2, label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _ellipse(axes: object, mean: Tensor, covariance: Tensor, color: object, **style: float) -> None:
    """The 2-sigma ellipse of a Gaussian of two dimensions."""
    variances, directions = torch.linalg.eigh(covariance)
    width, height = (4 * variances.clamp(min=0).sqrt()).tolist()
    angle = torch.rad2deg(torch.atan2(directions[1, 0], directions[0, 0])).item()
    center = (mean[0].item(), mean[1].item())
    outline = Ellipse(center, width, height, angle=angle, fill=False, edgecolor=color, **style)
    axes.add_patch(outline)  # type: ignore[attr-defined]
