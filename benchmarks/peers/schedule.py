"""Peers in turns: every run in a process of its own, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peers.data import Arrays, arrays_of
from peers.evaluation import Judge
from peers.settings import Problem
from peers.tasks import STARTED

_MOST_SECONDS = 900
LAST = 5
"""Snapshots that the final ELBO is a mean of."""


@dataclass(frozen=True)
class Peer:
    """A library.

    Attributes:
        name: on the command line and in tables.
        module: which ``run_...`` module.
        keeps: compiled code on disk, so that a first run and later ones differ.
        sweeps: does coordinate ascent, on some problems only.
        compile: what ``ppl_vi.fit(compile=...)`` is given, if not what the command line says.
    """

    name: str
    module: str
    keeps: bool = False
    sweeps: bool = False
    compile: str = ""


_ALL = (
    Peer("ppl-vi", "ppl_vi", keeps=True),
    Peer("ppl-vi, auto", "ppl_vi", compile="auto"),
    Peer("Pyro", "pyro"),
    Peer("NumPyro", "numpyro"),
    Peer("torch", "torch"),
    Peer("torch.compile", "torch_compile", keeps=True),
    Peer("scikit-learn", "sklearn", sweeps=True),
    Peer("BayesPy", "bayespy", sweeps=True),
)
PEERS = {peer.name.lower().replace(", ", "-"): peer for peer in _ALL}


@dataclass(frozen=True)
class Plan:
    """What the command line says of all runs."""

    alternations: int
    threads: int
    quick: bool
    compile: str
    bayespy_python: str
    load: float

    def steps(self, problem: Problem) -> int:
        """Gradient steps of a fit."""
        return problem.quick_steps if self.quick else problem.steps


@dataclass
class Outcome:
    """One run of one peer on one problem.

    Attributes:
        label: the row of the table: the peer, and whether compiled code was there before.
        alternation: the turn.
        seconds_per_step: of gradient, or per sweep.
        curve: steps, seconds since the start of the process, and ELBO per datum.
        notes: anything else.
        error: the last line that a failed process wrote.
    """

    label: str
    alternation: int
    seconds_per_step: float = float("nan")
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def elbo(self) -> float:
        """The final one: a mean of the last, since each by itself is noisy at a constant rate."""
        last = [elbo for _, _, elbo in self.curve[-LAST:]]
        return sum(last) / len(last) if last else float("nan")


def outcomes(problem: Problem, peers: list[Peer], plan: Plan) -> Iterator[Outcome]:
    """All runs of a problem, in turns whose order rotates."""
    arrays = arrays_of(problem)
    able = [peer for peer in peers if problem.solved_by_sweeps or not peer.sweeps]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        runner = _Runner(problem, arrays, plan, folder)
        for turn in range(plan.alternations):
            for place in range(len(able)):
                peer = able[(place + turn) % len(able)]
                if peer.keeps and turn == 0:  # its caches are fresh folders of this problem
                    yield runner.run(peer, f"{peer.name}, cold", turn)
                yield runner.run(peer, peer.name, turn)


class _Runner:
    def __init__(self, problem: Problem, arrays: Arrays, plan: Plan, folder: Path) -> None:
        self._problem, self._plan, self._folder = problem, plan, folder
        self._judge = Judge(problem, arrays)

    def run(self, peer: Peer, label: str, turn: int) -> Outcome:
        """Run a process, and judge what it leaves."""
        snapshots = self._folder / "snapshots.npz"
        environment = self._environment(peer)
        command = self._command(peer, turn, snapshots)
        environment[STARTED] = repr(time.time())
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_MOST_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Outcome(label, turn, error=type(error).__name__)
        if done.returncode:
            return Outcome(label, turn, error=(done.stderr.strip().splitlines() or ["?"])[-1])
        found = json.loads(done.stdout.strip().splitlines()[-1])
        elbos = self._judge.elbos(snapshots)
        curve = [(step, seconds, elbos[step]) for step, seconds in found["curve"]]
        return Outcome(label, turn, found["seconds_per_step"], curve, found["notes"])

    def _command(self, peer: Peer, turn: int, snapshots: Path) -> list[str]:
        plan, problem = self._plan, self._problem
        options = {
            "peer": peer.module,
            "problem": problem.name,
            "compile": peer.compile or plan.compile,
            "steps": plan.steps(problem),
            "threads": plan.threads,
            "seed": turn,
            "data": self._folder / "data.npz",
            "snapshots": snapshots,
        }
        python = plan.bayespy_python if peer.module == "bayespy" else sys.executable
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [python, "-m", "peers.child", *words, *["--quick"] * plan.quick]

    def _environment(self, peer: Peer) -> dict[str, str]:
        caches = self._folder / peer.name.replace(", ", "-")
        return {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": str(self._plan.threads),
            "PPL_VI_CACHE": str(caches / "steps"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "kernels"),
        }
