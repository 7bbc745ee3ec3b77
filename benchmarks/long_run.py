"""Does a long fit slow down or grow? Time per step and memory, by tenths of 100,000 compiled steps.

Sweeps of coordinate ascent are made with ``--sweeps``, in one piece and part by part; the losses that a
fit records take 32 bytes each.

Usage: python benchmarks/long_run.py [--steps N] [--rows N] [--sweeps]
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi import beginning, fit
from ppl_vi.compilation.blocks import BlockRunner
from ppl_vi.data.sources import DataSource
from ppl_vi.models import ConjugateGMM
from ppl_vi.training import Progress

_TENTHS = 10


def main() -> None:
    """Fit once to warm up, then for long, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument(
        "--sweeps", action="store_true", help="of coordinate ascent, instead of steps"
    )
    options = parser.parse_args()
    if options.sweeps:
        for rows in (options.rows, 3 * options.rows):  # the latter in three parts
            print(measured_sweeps(torch.randn(rows, 2), options).to_string(index=False))
        return
    data = torch.randn(options.rows, generator=torch.Generator().manual_seed(0))
    fit(_model, "normal", data, steps=200, compile=True, tol=None, seed=0)
    print(measured(data, options.steps).to_string(index=False))


def _model(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def measured(data: Tensor, steps: int) -> pd.DataFrame:
    """Microseconds per step and resident memory, at the end of each tenth."""
    seconds, memory = [0.0] * _TENTHS, [0.0] * _TENTHS
    advance, done = BlockRunner.advance, 0

    def timed(runner: BlockRunner, count: int) -> Any:
        nonlocal done
        started = time.perf_counter()
        taken = advance(runner, count)
        tenth = done * _TENTHS // steps
        seconds[tenth] += time.perf_counter() - started
        memory[tenth] = _resident()
        done += len(taken)
        return taken

    BlockRunner.advance = timed  # type: ignore[method-assign]
    try:
        fit(_model, "normal", data, steps=steps, compile=True, tol=None, seed=0)
    finally:
        BlockRunner.advance = advance  # type: ignore[method-assign]
    each = steps / _TENTHS
    return pd.DataFrame(
        {
            "steps": [round(each * (tenth + 1)) for tenth in range(_TENTHS)],
            "µs per step": [round(1e6 * spent / each, 2) for spent in seconds],
            "memory, MB": [round(megabytes, 1) for megabytes in memory],
        }
    )


def measured_sweeps(data: Tensor, options: argparse.Namespace) -> pd.DataFrame:
    """Likewise, of sweeps over a mixture of two components; many rows come in parts."""
    sweeps: int = options.steps

    def in_parts(model: Any, source: DataSource, data_plate: Any) -> DataSource:
        return source.parted(options.rows) if len(data) > options.rows else source

    seconds, memory = [time.perf_counter()], list[float]()

    def look(progress: Progress) -> None:
        if progress.step % (sweeps // _TENTHS) == 0:
            seconds.append(time.perf_counter())
            memory.append(_resident())

    settings: Any = {"tol": None, "seed": 0, "callbacks": [look], "progress": False}
    with patch.object(beginning, "in_parts", in_parts):
        fit(ConjugateGMM(2), "cavi", data, steps=sweeps, **settings)
    each = sweeps // _TENTHS
    return pd.DataFrame(
        {
            "sweeps": [each * (tenth + 1) for tenth in range(len(memory))],
            "µs per sweep": [round(1e6 * (b - a) / each, 1) for a, b in pairwise(seconds)],
            "memory, MB": [round(megabytes, 1) for megabytes in memory],
        }
    )


def _resident() -> float:
    """Of this process, in megabytes; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
