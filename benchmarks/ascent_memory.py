"""Coordinate ascent on rows that stay on disk: the most memory that is not the file's, and the rate.

Writes a table of float32 numbers, maps it into memory, and sweeps over it part by part, or over
minibatches. Prints the peak of anonymous memory (RssAnon), and the time of a sweep per row beside
that of sweeps over rows that are in memory in one piece, all compiled. The wall clock counts other
programs too; processor time does not. Linux only. With 100 million rows it writes 3.2 GB.

Usage: python benchmarks/ascent_memory.py [--rows N] [--dimension D] [--sweeps S] [--batch B]
       [--precision diagonal|full] [--in-memory M]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vi import FitResult, fit
from ppl_vi.models import ConjugateGMM

_COMPONENTS = 10
_PIECE = 1_000_000


class Rate(NamedTuple):
    """Nanoseconds a row in the fastest sweep but the first, by the clock and of all processors."""

    wall: float
    processor: float


def main() -> None:
    """Write the table, fit, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--batch", type=int, help="natural-gradient steps on so many rows instead")
    parser.add_argument("--precision", default="diagonal", choices=("diagonal", "full"))
    parser.add_argument("--in-memory", type=int, default=1_000_000, help="rows to compare with")
    options = parser.parse_args()
    model = ConjugateGMM(_COMPONENTS, precision=options.precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        written(path, options.rows, options.dimension)
        rows = np.load(path, mmap_mode="r")
        peak = Peak()
        started = time.perf_counter()
        with peak:
            settings: dict[str, Any] = {"steps": options.sweeps}
            if options.batch:
                settings["batch_size"] = options.batch
                settings["steps"] *= -(-options.rows // options.batch)
            result, streamed = timed(model, rows, **settings)
        seconds = time.perf_counter() - started
        few = torch.tensor(rows[: options.in_memory])
    looks = sum(result.job.source.sizes().values())
    print(
        f"{len(rows)} x {options.dimension} rows in {looks} parts, {result.num_steps} steps: "
        f"{seconds:.0f} s"
    )
    print(f"ELBO per row {result.bound / len(rows):.4f}, sampled {result.elbo / len(rows)}")
    print(f"peak of anonymous memory: {peak.bytes / 2**30:.2f} GiB")
    if options.batch:
        return
    _, whole = timed(model, few, steps=options.sweeps + 2)
    print(f"parts: {streamed.wall:.0f} ns a row and sweep, {streamed.processor:.0f} of processors")
    print(f"in memory ({len(few)} rows): {whole.wall:.0f} ns, {whole.processor:.0f} of processors")
    ratios = (100 * mine / other for mine, other in zip(whole, streamed, strict=True))
    print(
        "rate per row, part of that in memory: {:.0f} %, by processor time {:.0f} %".format(*ratios)
    )


def timed(model: ConjugateGMM, data: Any, **settings: Any) -> tuple[FitResult, Rate]:
    """A compiled fit, and its rate."""
    times: list[tuple[float, float]] = []
    result = fit(
        model,
        "cavi",
        data,
        tol=None,
        compile=True,
        seed=0,
        progress=False,
        callbacks=[lambda _: times.append((time.perf_counter(), time.process_time()))],
        **settings,
    )
    fastest = np.diff(times, axis=0).min(0) / len(data) * 1e9
    return result, Rate(*fastest)


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
