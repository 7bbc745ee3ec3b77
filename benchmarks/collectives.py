"""What it costs to sum over processes: by components of a mixture, and by parameters of a network.

    python benchmarks/collectives.py [--most 100000000] [--repeats 20]

Processes stand on one machine and speak through gloo over its loopback, so that they share cores and
memory: the time of a sum has no network in it, and with more processes than cores they also wait for
each other. The median is that of all repeats, the least is nearest to a machine that is not busy. From
``time_of_sum`` comes what a cluster would take.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed
import torch.multiprocessing

from ppl_vi.program.row_draws import Part
from ppl_vi.ranks.group import joined
from ppl_vi.ranks.sums import SumOverParts

COMPONENTS = (10, 30, 100, 300, 1_000)
COLUMNS = 8
PROCESSES = (2, 4)
BYTES = 4


def time_of_sum(machines: int, size: float, latency: float, bandwidth: float) -> float:
    """Seconds that a ring of machines takes to sum tensors.

    t = 2 (P - 1) · latency + 2 (P - 1) / P · size / bandwidth

    Args:
        machines: P.
        size: of the tensor, in bytes.
        latency: of one message, in seconds.
        bandwidth: of one machine's connection, in bytes per second.

    Source: Thakur, Rabenseifner and Gropp (2005).
    """
    hops = 2 * (machines - 1)
    return hops * latency + hops / machines * size / bandwidth


def blocks(components: int) -> list[list[torch.Tensor]]:
    """What a sweep of a diagonal mixture sums: one collective for each block, and one for the ELBO."""
    table = (components, COLUMNS)
    shapes = [[(components,)], [table, table], [table, table], [()]]
    return [[torch.ones(shape) for shape in block] for block in shapes]


def timed(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Milliseconds, the median and the least; the first time is left out, and all begin together."""
    taken = []
    for _ in range(repeats + 1):
        torch.distributed.barrier()
        began = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[1:]), min(taken[1:])


def sum_blocks(sums: SumOverParts, made: list[list[torch.Tensor]]) -> None:
    """The collectives of a sweep."""
    for block in made:
        sums.total(block)


def measure(rank: int, processes: int, port: int, most: int, repeats: int) -> None:
    """One process's part; the first one prints the table."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
    torch.set_num_threads(1)
    with joined() as ranks:
        part = Part(torch.zeros(1, dtype=torch.int64), processes, 1, rank, ranks.sum)
        sums = SumOverParts(part)
        for components in COMPONENTS:
            made = blocks(components)
            numbers = sum(tensor.numel() for block in made for tensor in block)
            median, least = timed(partial(sum_blocks, sums, made), repeats)
            if ranks.first:
                print(
                    f"{processes} processes, K = {components:>5}: {numbers * BYTES / 1e3:>8.1f} kB in "
                    f"{len(made)} sums, {median:>8.2f} ms a sweep (least {least:.2f})",
                    flush=True,
                )
        count = 100_000
        while count <= most:
            tensor = torch.ones(count)
            median, least = timed(partial(ranks.sum, tensor), max(3, repeats // 4))
            if ranks.first:
                rate = 2 * (processes - 1) / processes * count * BYTES / least / 1e6
                print(
                    f"{processes} processes, {count:>11,} parameters: {count * BYTES / 1e6:>7.1f} MB, "
                    f"{median:>9.2f} ms a step (least {least:.2f}: {rate:.2f} GB/s a process)",
                    flush=True,
                )
            count *= 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=10**8, help="parameters, the most of them")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, gloo over loopback")
    for processes in PROCESSES:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (processes, port, given.most, given.repeats)
        torch.multiprocessing.spawn(measure, arguments, nprocs=processes)
    print("\non paper, 64 machines, 50 microseconds a message, 1.25 GB/s (10 Gbit/s) a machine:")
    for components in COMPONENTS:
        sizes = [BYTES * sum(t.numel() for t in block) for block in blocks(components)]
        seconds = sum(time_of_sum(64, size, 50e-6, 1.25e9) for size in sizes)
        print(f"K = {components:>5}: {seconds * 1e3:>8.1f} ms a sweep")
    for power in range(5, 9):
        seconds = time_of_sum(64, BYTES * 10**power, 50e-6, 1.25e9)
        print(f"{10**power:>11,} parameters: {seconds * 1e3:>8.1f} ms a step")


if __name__ == "__main__":
    main()
