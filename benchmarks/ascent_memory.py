"""Coordinate ascent on rows that stay on disk: the most memory that is not the file's.

Writes a table of numbers, maps it into memory, fits a mixture to it in batches, and prints the peak of
anonymous memory (RssAnon), with the ELBO of all rows. Linux only.

Usage: python benchmarks/ascent_memory.py [--rows N] [--dimension D] [--batch B] [--passes P]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from ppl_vi import fit
from ppl_vi.guides import CAVIGuide
from ppl_vi.models import ConjugateGMM

_COMPONENTS = 10
_PIECE = 1_000_000


def main() -> None:
    """Write the table, fit, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--batch", type=int, default=100_000)
    parser.add_argument("--passes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        written(path, options.rows, options.dimension)
        rows = np.load(path, mmap_mode="r")
        model = ConjugateGMM(_COMPONENTS)
        steps = options.passes * -(-options.rows // options.batch)
        peak = Peak()
        started = time.perf_counter()
        with peak:
            result = fit(
                model,
                CAVIGuide(model),
                rows,
                batch_size=options.batch,
                steps=steps,
                seed=0,
                progress=False,
            )
        seconds = time.perf_counter() - started
    print(f"{options.rows} x {options.dimension} rows in {steps} batches: {seconds:.0f} s")
    print(f"ELBO per row {result.bound / options.rows:.4f}, sampled {result.elbo / options.rows}")
    print(f"peak of anonymous memory: {peak.bytes / 2**30:.2f} GiB")


def written(path: Path, rows: int, dimension: int) -> None:
    """Write float32 rows of a mixture, piece by piece."""
    rng = np.random.default_rng(0)
    centers = 4 * rng.standard_normal((_COMPONENTS, dimension), dtype=np.float32)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimension))
    for start in range(0, rows, _PIECE):
        size = min(_PIECE, rows - start)
        noise = rng.standard_normal((size, dimension), dtype=np.float32)
        table[start : start + size] = centers[rng.integers(_COMPONENTS, size=size)] + noise
    table.flush()


class Peak:
    """The most anonymous memory of this process within a block, looked at every 20 ms.

    Attributes:
        bytes: the peak.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            (line,) = (line for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, 1024 * int(line.split()[1]))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
