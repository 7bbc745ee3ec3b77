"""Fits of several processes come to what one process alone comes to, and fail together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SECONDS = 550


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in more.items()},
    }


def by_torchrun(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    pipe, together = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, env=environment(), stdout=pipe, stderr=together, text=True)


def told(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=SECONDS)[0]
    finally:
        process.kill()


def check(processes: int, *groups: str) -> None:
    """Every case in every process comes to what the process comes to alone."""
    script = HERE / "together.py"
    job = by_torchrun("--standalone", "--nproc-per-node", processes, script, *groups)
    output = told(job)
    assert job.returncode == 0, output
    for group in groups:
        for rank in range(processes):
            assert f"rank {rank}: {group}, " in output


def test_two_processes_with_all_rows_and_with_parts_of_their_own() -> None:
    """One of them has no row in the second group."""
    check(2, "short", "short:given")


def test_a_process_that_fails_tells_the_others() -> None:
    """The first process is told what became of the second one, in every case but the last."""
    port = free_port()
    jobs = [
        subprocess.Popen(
            [sys.executable, str(HERE / "failing.py")],
            env=environment(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [told(job) for job in jobs]
    first, second = (
        dict(line.split(" | ", 1) for line in output.splitlines() if " | " in line)
        for output in outputs
    )
    assert "DataError: `data` has" in second["data"], outputs
    assert first["data"].startswith(
        "RanksError: another process of this fit failed. rank 1: DataError"
    )
    for name in ("settings", "lengths", "kinds", "plates"):
        assert first[name] == second[name], name
    assert "steps: rank 0 was given 5, and rank 1 6" in first["settings"]
    assert "[6, 5], by rank" in first["lengths"]
    assert "rank 0: [((1,)" in first["kinds"]
    assert "no plate of the model follows the rows" in first["plates"]
    assert second["callback"] == "OSError: a disk of the second process is full"
    assert "rank 1: OSError: a disk of the second process is full" in first["callback"]
    assert first["overflow"].startswith("FloatingPointError: step 1: the loss is")
    assert second["overflow"].startswith("FloatingPointError: step 1: the loss is")
    assert first["none"] == second["none"] != ""
    assert "killed" not in second and jobs[1].returncode < 0
    assert "rank 0 of 2 had no answer from another process" in first["killed"]
    assert jobs[0].returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("given", ["", ":given"], ids=["split", "given"])
@pytest.mark.parametrize("group", ["gradients", "more_gradients", "sweeps", "more_sweeps"])
def test_many_fits(group: str, given: str, processes: int) -> None:
    """Of four processes with parts of their own, the second has no row."""
    check(processes, group + given)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["scale", "searched", "streamed"])
def test_fits_of_all_rows(group: str) -> None:
    check(2, group)


@pytest.mark.slow
def test_two_machines() -> None:
    """Two agents, each with an address of its own, meet at a rendezvous."""
    meeting = f"127.0.0.1:{free_port()}"
    settings = ["--nnodes", 2, "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-id", 7]
    script = HERE / "together.py"
    agents = [
        by_torchrun(*settings, "--rdzv-endpoint", meeting, "--local-addr", address, script, "short")
        for address in ("127.0.0.1", "127.0.0.2")
    ]
    outputs = [told(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert all(f"rank {rank}: short, gamma-poisson" in "".join(outputs) for rank in range(4))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [("all rows", 150), ("batches", 130), ("sweeps", 14)])
def test_a_process_that_is_killed_is_started_again(kind: str, step: int, tmp_path: Path) -> None:
    """And all go on from the checkpoint, bit for bit as if nothing had been."""
    kept = []
    for name, at in (("whole", 0), ("killed", step)):
        folder = tmp_path / name
        folder.mkdir()
        options = "--standalone", "--nproc-per-node", 2, "--max-restarts", 2
        job = by_torchrun(*options, HERE / "dying.py", kind, folder, at)
        output = told(job)
        assert job.returncode == 0, output
        kept.append(torch.load(folder / "kept.pt"))
    assert (tmp_path / "killed" / "died").exists()
    assert len(kept[0]) == len(kept[1]) > 1
    assert all(map(torch.equal, *kept))
