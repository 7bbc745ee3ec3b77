"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from ppl_vi.checkpoints.format import State, decoded, encoded
from ppl_vi.errors import CheckpointError


def write(path: str | os.PathLike[str], state: State) -> None:
    """Write a state, so that a file of that name is at any moment the old one or the new one, whole.

    Into a file beside it first, which takes its place when all is on the disk. What is stopped half way
    leaves that one behind (``NAME.part``), and the next write uses its name again.

    Args:
        path: of the file; its folder must be there.
        state: nested plain values and tensors.

    Raises:
        OSError: the disk is full or may not be written; the old file is as it was.
        TypeError: a value cannot be stored.
    """
    content = encoded(state)
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _settle(target.parent)


def read(path: str | os.PathLike[str]) -> State:
    """Read a state that ``write`` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: the file is not there, is none of ours, is damaged, or is newer than this code.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be read ({error.strerror}). Correct the path."
        ) from error
    return decoded(content, repr(os.fspath(path)))


def _settle(folder: Path) -> None:
    """Have the new name of a file on the disk, where the system lets folders be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
