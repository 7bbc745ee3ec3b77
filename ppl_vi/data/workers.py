"""Processes that read data beside the fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_vi.errors import DataError


@contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Run a block in which the worker of a ``DataLoader`` may die, and say so.

    torch raises its error wherever the block happens to be.

    Raises:
        DataError: a worker died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        said = _told_of_worker(error)
        if not said:
            raise
        # Whoever waits for the dead worker is forgotten: torch raises again for as long as it is there.
        traceback.clear_frames(error.__traceback__)
        raise DataError(
            f"a process that reads the data died: {said}. It may have been killed for "
            f"want of memory: give the DataLoader fewer workers or smaller batches. Where the fit has "
            f"a checkpoint, resume=True goes on from the last one."
        ) from error


def _told_of_worker(error: BaseException) -> str:
    """What an error says of a worker; empty where it tells of something else."""
    said = str(error).splitlines()[0].rstrip(". ") if str(error) else ""
    if isinstance(error, RuntimeError):
        return said if "DataLoader worker" in said else ""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    loads = any("torch/utils/data" in Path(f.f_code.co_filename).as_posix() for f in frames)
    return f"DataLoader worker gone ({said or type(error).__name__})" if loads else ""
