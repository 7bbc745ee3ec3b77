"""The report in Markdown."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from pathlib import Path

from peers.measures import Row, rows, spread
from peers.schedule import Outcome, Plan
from peers.settings import Problem

Found = dict[str, list[Outcome]]
_PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "scikit-learn", "numpy", "ppl-vi")
_HEAD = (
    "| peer | µs per step | to NumPyro | to Pyro | ten steps, s | target, s | ELBO per datum |\n"
    "|:--|--:|--:|--:|--:|--:|--:|\n"
)
_SWEEPS = "| peer | ms per sweep | sweeps | process start to solution, s |\n|:--|--:|--:|--:|\n"
METHOD = """\
Every run is a process of its own, and peers take turns on one machine. Data, starts, Adam and its
rate, and the gradient estimator (one draw of log p - log q) are the same for all; guides have a loc and
a log-scale for each latent. Draws differ, and so do minibatches: ppl-vi goes through epochs, the others
draw rows with replacement.

- *µs per step*: of a warm loop, the median over turns. Of ppl-vi it is what a warm fit spends on its
  steps, `result.execution.step_seconds`, since each call of `fit` has work before and after them.
- *to NumPyro*, *to Pyro*: the time of a step over that of the other in the same turn, the median over
  turns; less than one is faster.
- *ten steps*: seconds from the start of the process, imports and compilers included. Of ppl-vi it is
  when `fit` returns, with all that `fit` does after its steps: the measured end of a whole fit less
  the steps that it took beyond these.
- *target*: seconds from the start of the process until the ELBO is {within}
  below the best final one of any peer in any turn, and is so at the next snapshot too. Snapshots
  come after 10 steps and then 1.25 times as many. The same judge evaluates all, off the clock.
- *ELBO per datum*: the mean over the last five snapshots, since each is noisy at a constant rate.
- *ppl-vi* compiles its steps (`compile=True`); *ppl-vi, auto* is what `fit` does by itself: it does not
  compile where so few steps do not repay it, and then reads nothing from disk either.
- *cold*: compiled code is not on disk yet. It is in the other rows, for the libraries that keep it
  there by default. NumPyro does not, and compiles in every process.
- Pyro runs without validation; NumPyro's step is `svi.update` in a compiled loop that keeps every
  loss, as `svi.run` does; *torch* is written by hand, with flat parameters and the fused Adam;
  *torch.compile* is its loss compiled.
"""


def report(found: Found, problems: dict[str, Problem], plan: Plan, command: str) -> str:
    """The whole text."""
    parts = ["# Peers\n", head(plan, command), METHOD.format(within=_within(found, problems))]
    parts += [flags(found, problems)]
    parts += [_section(problems[name], outcomes) for name, outcomes in found.items()]
    return "\n".join(parts)


def head(plan: Plan, command: str) -> str:
    """Machine, versions and command."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    lines = [
        f"`{command}`\n",
        f"{_processor()}, {os.cpu_count()} cores; torch on {plan.threads} threads, jax on all cores; "
        f"load of the machine before the first run: {plan.load:.1f}.",
        f"{', '.join(versions)}.\n",
    ]
    return "\n".join(lines)


def flags(found: Found, problems: dict[str, Problem]) -> str:
    """Problems on which peers do not agree, and runs that failed."""
    lines = []
    for name, outcomes in found.items():
        width, allowed = spread(outcomes), problems[name].tolerance
        if width > allowed:
            lines.append(
                f"- {problems[name].title}: final ELBOs differ by {width:.3g} nats per datum, "
                f"more than {allowed:g}."
            )
        failed = {o.label: o.error for o in outcomes if o.error}
        lines += [f"- {problems[name].title}, {who}: {why}" for who, why in failed.items()]
    agree = "On every problem the final ELBOs of peers agree, to 0.01 nats per datum (VAE: 1)."
    return "\n".join(["**Check these:**\n", *lines] if lines else [agree]) + "\n"


def _within(found: Found, problems: dict[str, Problem]) -> str:
    vae = ", of the VAE 0.5," if any(problems[name].model == "vae" for name in found) else ""
    return f"at most 0.01 nats per datum{vae}"


def _section(problem: Problem, outcomes: list[Outcome]) -> str:
    table = rows(problem, outcomes)
    steps = [row for row in table if "sweeps" not in row.notes]
    sweeps = [row for row in table if "sweeps" in row.notes]
    text = f"## {problem.title}\n\n{_HEAD}{''.join(map(_line, steps))}"
    if sweeps:
        text += (
            "\nOther algorithms (coordinate ascent, other bounds; not to be compared by steps):\n\n"
        )
        text += _SWEEPS + "".join(map(_sweep_line, sweeps))
    return text


def _line(row: Row) -> str:
    if row.error and math.isnan(row.per_step):
        return f"| {row.label} | failed | | | | | |\n"
    target = _number(row.target, ".2f")
    if row.missed:
        target += f" (missed {row.missed}×)"
    cells = [
        row.label,
        _number(1e6 * row.per_step, ",.1f" if row.per_step < 1e-4 else ",.0f"),
        _number(row.to_numpyro, ".2f"),
        _number(row.to_pyro, ".3f"),
        _number(row.start, ".2f"),
        target,
        _number(row.elbo, ".4f"),
    ]
    return f"| {' | '.join(cells)} |\n"


def _sweep_line(row: Row) -> str:
    seconds = row.notes["seconds_to_solution"]
    return (
        f"| {row.label} | {_number(1e3 * row.per_step, '.3g')} | {row.notes['sweeps']} "
        f"| {seconds:.2f} |\n"
    )


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
