"""Processes that are killed at random moments, and go on as if nothing had been."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from ppl_vi.checkpoints import read

KILLS, IN_A_ROW = 20, 5
WISHES = ("eager", "captured", "compiled")
PROBLEMS = ("mixture", "cavi", "vae", "baseline")


class Server:
    """Starts processes, each of which resumes a fit."""

    def __init__(self) -> None:
        self._own = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("killed.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def resume(self, problem: str, wish: str, folder: Path, seconds: float = math.inf) -> bool:
        """Resume a fit, and kill it after so many seconds; whether it ended by itself."""
        tell, told = self._pipes()
        tell.write(f"{problem} {wish} {folder} {seconds}\n")
        tell.flush()
        answer = told.readline().strip()
        assert answer in ("ended", "killed")
        return answer == "ended"

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._own.stdin is not None and self._own.stdout is not None
        return self._own.stdin, self._own.stdout

    def end(self) -> None:
        tell, told = self._pipes()
        tell.close()
        self._own.wait()
        told.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.end()


def same(one: Any, other: Any) -> bool:
    tensors = zip(
        [*one["values"], *one["swept"], one["losses"]],
        [*other["values"], *other["swept"], other["losses"]],
        strict=True,
    )
    equal = all(torch.equal(mine, its) for mine, its in tensors)
    return equal and (one["bound"], one["mode"]) == (other["bound"], other["mode"])


@pytest.mark.slow
@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_killed_at_random_moments(
    problem: str, wish: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is killed up to five times in a row; twenty kills in all."""
    for name in ("warm", "whole"):  # the first one compiles
        (tmp_path / name).mkdir()
        started = time.monotonic()
        assert server.resume(problem, wish, tmp_path / name)
    took, whole = time.monotonic() - started, read(tmp_path / "whole" / "result")
    assert whole["mode"] == wish
    chance, kills, runs = random.Random(f"{problem} {wish}"), 0, 0
    while kills < KILLS:
        runs += 1
        folder = tmp_path / f"run {runs}".replace(" ", "_")
        folder.mkdir()
        for _ in range(IN_A_ROW):
            if server.resume(problem, wish, folder, chance.uniform(0.0, took)):
                break
            kills += 1
        else:
            assert server.resume(problem, wish, folder)
        assert same(read(folder / "result"), whole)
    with capsys.disabled():
        print(f"\n{problem}, {wish}: {kills} kills in {runs} runs of {took:.1f} s, all alike")
