"""One peer on one problem in a process of its own: prints one line of JSON."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

import numpy as np

from peers.settings import PROBLEMS
from peers.tasks import Run, Task


def main() -> None:
    """Fit, write the snapshots, print the rest."""
    parser = argparse.ArgumentParser()
    for name in ("--peer", "--problem", "--compile"):
        parser.add_argument(name, required=True)
    for name in ("--steps", "--threads", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    for name in ("--data", "--snapshots"):
        parser.add_argument(name, type=Path, required=True)
    options = parser.parse_args()
    with np.load(options.data) as file:
        arrays = dict(file)
    wish = {"true": True, "false": False}.get(options.compile, options.compile)
    problem = PROBLEMS[options.problem]
    task = Task(problem, arrays, options.steps, options.threads, options.seed, wish, options.quick)
    run: Run = import_module(f"peers.run_{options.peer}").run(task)
    kept = {f"{s.step}/{name}": a for s in run.snapshots for name, a in s.values.items()}
    np.savez(options.snapshots, **kept)  # type: ignore[arg-type]
    curve = [(snapshot.step, snapshot.seconds) for snapshot in run.snapshots]
    line = {"seconds_per_step": run.seconds_per_step, "curve": curve, "notes": run.notes}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
