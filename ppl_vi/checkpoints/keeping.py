"""Who writes the checkpoints of a fit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ppl_vi.checkpoints.files import read, write
from ppl_vi.checkpoints.format import State, decoded, encoded
from ppl_vi.errors import CheckpointError
from ppl_vi.ranks.group import ALONE, Ranks


@contextmanager
def understood(name: str) -> Iterator[None]:
    """Run a block that goes on from a file whose digest is right.

    Args:
        name: of the file.

    Raises:
        CheckpointError: the file does not hold what the block asks for.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} does not hold what this fit would go on from ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}). Begin anew, without resume=True."
        ) from error


class Keeper:
    """Writes the state of a fit now and then.

    A write that fails (the disk is full, the folder gone) ends no fit: the last good checkpoint stays,
    and the failures are counted and told, the first one when it happens and all of them at the end.
    Of several processes the first reads and writes; the file has the state of each.

    Args:
        path: of the checkpoint; ``None`` writes none.
        every: steps from one to the next.
        ranks: the processes.

    Attributes:
        common: what all checkpoints from here on have in common.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, every: int, ranks: Ranks = ALONE
    ) -> None:
        self._path, self._every = None if path is None else Path(path), every
        self._ranks = ranks
        self.common: dict[str, State] = {}
        self._written = self._failed = 0
        self._last = 0  # the step of the last one
        self._is_there = False

    @property
    def name(self) -> str:
        """Of the file, for errors."""
        return repr(str(self._path))

    @property
    def writes(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def found(self) -> Any:
        """The state in the file, of this process; ``None`` where there is no file yet.

        Raises:
            CheckpointError: as ``read`` does, or the file holds no fit that can go on, or that of
                another number of processes.
        """
        if self._path is None:
            return None
        here = self._ranks.first and self._path.exists()
        state = self._ranks.gathered(read(self._path) if here else None)[0]
        if state is None:
            return None
        if not isinstance(state, dict) or state.get("kind") != "run" or "ranks" not in state:
            raise CheckpointError(
                f"{self.name} holds no fit that can go on. Name a file that fit(checkpoint=...) wrote; "
                f"FitResult.load reads those of result.save()."
            )
        self._is_there = True
        if len(state["ranks"]) != self._ranks.size:
            raise CheckpointError(
                f"{self.name} was written by {len(state['ranks'])} processes, and this fit has "
                f"{self._ranks.size}. Start as many as before."
            )
        return state["ranks"][self._ranks.rank]

    def begin(self, state: Callable[[], State]) -> None:
        """Write the first checkpoint of a fit, before its first step, if there is none yet.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._path is None or self._is_there:
            return
        try:
            self._write(state)
            self._is_there = True
        except OSError as error:
            raise CheckpointError(
                f"checkpoint={self.name} cannot be written ({error.strerror}). Name a file in a folder "
                f"that is there and may be written to."
            ) from error
        except TypeError as error:
            raise CheckpointError(
                f"checkpoint={self.name}: {error} It belongs to the optimizer, its schedule or a "
                f"module; use one whose state is made of numbers and tensors."
            ) from error

    def offer(self, step: int, last: bool, state: Callable[[], State]) -> None:
        """Write a checkpoint, if it is time for one.

        Args:
            step: how many were taken.
            last: whether no more will be.
            state: gives all that the fit goes on from.
        """
        passed = step // self._every > self._last // self._every
        if self._path is None or not (last or passed):
            return
        self._last = step
        try:
            self._write(state)
            self._written += 1
        except OSError as error:
            self._failed += 1
            if self._failed == 1:
                warnings.warn(
                    f"checkpoint={self.name} could not be written at step {step} ({error.strerror}). "
                    f"The fit goes on, and tries again at every checkpoint.",
                    stacklevel=2,
                )

    def _write(self, state: Callable[[], State]) -> None:
        own: State = {**self.common, **state()}
        each = [own]
        if self._ranks.size > 1:  # as bytes, since what hangs on a parameter cannot be sent
            each = [decoded(sent, self.name) for sent in self._ranks.gathered(encoded(own))]
        if self._path is not None and self._ranks.first:
            write(self._path, {"kind": "run", "ppl_vi": version("ppl-vi"), "ranks": each})

    def restarted(self, step: int) -> None:
        """Another restart begins, or goes on, at this step."""
        self._last = step

    def end(self) -> None:
        """Tell how many checkpoints could not be written."""
        if self._failed > 1:
            warnings.warn(
                f"checkpoint={self.name}: {self._failed} of {self._failed + self._written} checkpoints "
                f"could not be written. The last good one is still there, if there was one.",
                stacklevel=2,
            )
