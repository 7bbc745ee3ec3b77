"""Processes that read data beside the fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

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
    except RuntimeError as error:
        said = str(error).splitlines()[0] if str(error) else ""
        if "DataLoader worker" not in said:
            raise
        # Whoever waits for the dead worker is forgotten: torch raises again for as long as it is there.
        traceback.clear_frames(error.__traceback__)
        raise DataError(
            f"a process that reads the data died: {said.rstrip('. ')}. It may have been killed for "
            f"want of memory: give the DataLoader fewer workers or smaller batches. Where the fit has "
            f"a checkpoint, resume=True goes on from the last one."
        ) from error
