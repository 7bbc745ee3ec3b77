"""Does a long fit slow down or grow? Time per step and memory, by tenths of 100,000 compiled steps.

Usage: python benchmarks/long_run.py [--steps N] [--rows N]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi import fit
from ppl_vi.compilation.blocks import BlockRunner

_TENTHS = 10


def main() -> None:
    """Fit once to warm up, then for long, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=10)
    options = parser.parse_args()
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


def _resident() -> float:
    """Of this process, in megabytes; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
