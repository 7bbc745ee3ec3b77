"""The pictures: steps per second, and the ELBO against seconds."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from peers.measures import best_elbo, rows
from peers.schedule import Outcome
from peers.settings import Problem

Found = dict[str, list[Outcome]]
_COLORS = {
    "ppl-vi": "#c0392b",
    "ppl-vi, auto": "#e59a91",
    "Pyro": "#e08e0b",
    "NumPyro": "#2874a6",
    "torch": "#7f8c8d",
    "torch.compile": "#1e8449",
}
_COLUMNS = 4


def draw(found: Found, problems: dict[str, Problem], folder: Path) -> None:
    """Write ``peers_steps.png`` and ``peers_elbo.png``."""
    matplotlib.use("Agg")
    for name, panel in (("peers_steps", _steps), ("peers_elbo", _elbos)):
        figure, axes = _grid(len(found))
        for (key, outcomes), axis in zip(found.items(), axes, strict=False):
            axis.set_title(problems[key].title, fontsize=10)
            panel(axis, problems[key], outcomes)
        for axis in axes[len(found) :]:
            axis.set_visible(False)
        lines = {line.get_label(): line for axis in axes for line in axis.lines if panel is _elbos}
        named = {label: line for label, line in lines.items() if not str(label).startswith("_")}
        if named:  # one for all, where it hides nothing
            figure.legend(named.values(), named, loc="outside lower center", ncols=len(named))
        figure.savefig(folder / f"{name}.png", dpi=130)
        plt.close(figure)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    lines = math.ceil(count / columns)
    size = (4.2 * columns, 3.4 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def _steps(axis: Axes, problem: Problem, outcomes: list[Outcome]) -> None:
    """A bar for each peer, on a logarithmic scale."""
    shown = [row for row in rows(problem, outcomes) if row.label in _COLORS]
    shown = [row for row in shown if not math.isnan(row.per_step)]
    shown.sort(key=lambda row: list(_COLORS).index(row.label))
    rates = [1 / row.per_step for row in shown]
    bars = axis.barh(
        [row.label for row in shown], rates, color=[_COLORS[row.label] for row in shown]
    )
    axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=2, fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(min(rates, default=1) / 3, max(rates, default=1) * 6)
    axis.invert_yaxis()
    axis.set_xlabel("steps per second")


def _elbos(axis: Axes, problem: Problem, outcomes: list[Outcome]) -> None:
    """The first turn of each peer; dashed where nothing was compiled before."""
    best = best_elbo(outcomes)
    for outcome in outcomes:
        name = outcome.label.removesuffix(", cold")
        if outcome.alternation or not outcome.curve or name not in _COLORS:
            continue
        seconds = [second for _, second, _ in outcome.curve]
        # The gap, since curves that end at one height can't be told apart near it.
        gaps = [max(best - elbo, problem.within / 10) for _, _, elbo in outcome.curve]
        style = "--" if outcome.label != name else "-"
        axis.plot(seconds, gaps, style, color=_COLORS[name], label=outcome.label, linewidth=1.3)
    axis.axhline(problem.within, color="black", linewidth=0.6, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="seconds since process start")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("best ELBO − ELBO, nats per datum")
