"""Processes that read data beside the fit."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_vi.errors import DataError

_DEAD = "DataLoader worker"
_RAISED = "Caught "
"""So torch begins what a data set itself raised in a worker, which lives on."""
_SECONDS = 1.0


@contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Run a block in which the worker of a ``DataLoader`` may die, and say so.

    torch raises its error wherever the block happens to be.

    Raises:
        DataError: a worker died.
    """
    try:
        with _heard_of():
            yield
    except RuntimeError as error:
        said = _first_line(error)
        if _DEAD not in said or said.startswith(_RAISED):
            raise
        # Whoever waits for the dead worker is forgotten: torch raises again for as long as it is there.
        for heard in filter(None, (error, error.__context__)):
            traceback.clear_frames(heard.__traceback__)
        raise DataError(
            f"a process that reads the data died: {said}. It may have been killed for "
            f"want of memory: give the DataLoader fewer workers or smaller batches. Where the fit has "
            f"a checkpoint, resume=True goes on from the last one."
        ) from error


@contextmanager
def _heard_of() -> Iterator[None]:
    """Where the pipe of a dead worker breaks before torch hears of its end, wait until it does.

    Its handler of the signal would else raise at any later time, in the midst of whatever runs then.
    """
    try:
        yield
    except (ConnectionError, EOFError) as error:
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        loads = any("torch/utils/data" in Path(f.f_code.co_filename).as_posix() for f in frames)
        said = _first_line(error)
        if not loads or said.startswith(_RAISED):
            raise
        time.sleep(_SECONDS)
        raise RuntimeError(f"{_DEAD} gone ({said or type(error).__name__})") from error


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0].rstrip(". ")
