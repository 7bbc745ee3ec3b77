"""Sweeps of several processes, each of which has its rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from ppl_vi.job import Job
from ppl_vi.ranks.shards import ShardedSource
from ppl_vi.sweeping.guides import is_swept


def divides(job: Job) -> bool:
    """Whether sweeps look at all rows that a process has at once, and others have others."""
    return isinstance(job.source, ShardedSource) and not job.source.batched


@contextmanager
def divided(job: Job) -> Iterator[None]:
    """Where each of several processes has its rows in memory, they count for all of them."""
    with job.handler(job.source.whole()) if divides(job) else nullcontext():
        yield


def unite(job: Job) -> None:
    """The guide without the other processes, after the last sweep."""
    if is_swept(job.guide) and isinstance(job.source, ShardedSource) and divides(job):
        with job.handler(job.source.whole()):
            job.guide.unite(job.source.whole(), job.source.split)
