"""ppl-vi beside its peers: time per step, and the ELBO against seconds since process start.

Pyro, NumPyro, torch by hand and torch.compile take the same fits from the same starts, each in a
process of its own, in turns. On mixtures scikit-learn and BayesPy stand apart: coordinate ascent.
The report is peers.md, with peers_steps.png, peers_elbo.png and all runs in peers.json.

BayesPy needs NumPy 1: name the Python of an environment that has it, or the peer is left out.

Usage: python benchmarks/compare_peers.py [--problems A,B] [--peers A,B] [--alternations N] [--quick]
       [--threads N] [--compile true|false|auto] [--bayespy-python PYTHON] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from peers.pictures import draw
from peers.schedule import PEERS, Outcome, Peer, Plan, outcomes
from peers.settings import PROBLEMS, Problem
from peers.table import flags, report

T = TypeVar("T")
QUICK = ("mixture-10", "logistic-batches")
_MOST_LOAD = 0.5


def main() -> None:
    """Run all, print the report and write it."""
    options = _options()
    names = options.problems or ",".join(QUICK if options.quick else PROBLEMS)
    turns = 1 if options.quick else options.alternations
    plan = Plan(
        turns, options.threads, options.quick, options.compile, options.bayespy_python, _load()
    )
    peers = [peer for peer in _named(options.peers, PEERS) if _is_there(peer, plan)]
    problems = {problem.name: problem for problem in _named(names, PROBLEMS)}
    found: dict[str, list[Outcome]] = {}
    started = time.perf_counter()
    for name, problem in problems.items():
        found[name] = []
        for outcome in outcomes(problem, peers, plan):
            found[name].append(outcome)
            _tell(name, outcome, time.perf_counter() - started)
        _write(found, problems, plan, options.out)
    print(flags(found, problems))
    print((options.out / "peers.md").read_text())


def _write(
    found: dict[str, list[Outcome]], problems: dict[str, Problem], plan: Plan, folder: Path
) -> None:
    """The files, after every problem: a run that is stopped leaves what it found."""
    # Written as it is typed: where Python or the output folder are is no one's business.
    command = shlex.join(["python", "benchmarks/compare_peers.py", *_shown(sys.argv[1:])])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(report(found, problems, plan, command))
    runs = {name: [asdict(outcome) for outcome in own] for name, own in found.items()}
    (folder / "peers.json").write_text(json.dumps(runs) + "\n")
    draw(found, problems, folder)


def _load() -> float:
    """What the machine has to do already; two threads that wait for each other suffer most."""
    load = os.getloadavg()[0]
    if load > _MOST_LOAD:
        print(f"the machine is busy (load {load:.1f}): its times are no good", file=sys.stderr)
    return load


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", help="by default all, or two that are quick")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps and one turn")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--compile", choices=("true", "false", "auto"), default="true")
    parser.add_argument("--bayespy-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def _named(names: str, known: dict[str, T]) -> list[T]:
    wanted = names.lower().split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _shown(words: list[str]) -> list[str]:
    """The arguments without folders."""
    return [Path(word).name if word.startswith("/") else word for word in words]


def _is_there(peer: Peer, plan: Plan) -> bool:
    """Whether BayesPy, which few have, can be run."""
    if peer.module != "bayespy":
        return True
    asked = subprocess.run([plan.bayespy_python, "-c", "import bayespy"], capture_output=True)
    if asked.returncode:
        print("BayesPy is left out: this Python has none; see --bayespy-python")
    return asked.returncode == 0


def _tell(problem: str, outcome: Outcome, seconds: float) -> None:
    what = outcome.error or f"{1e6 * outcome.seconds_per_step:.1f} µs, ELBO {outcome.elbo:.4f}"
    print(f"{seconds:5.0f} s  {problem}, {outcome.label}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
