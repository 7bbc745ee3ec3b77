"""The mean of the last iterates of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.checkpoints import State

_PARTS = 8


class _Part(NamedTuple):
    """Sums of ``number`` iterates in a row, the first of them at ``step``."""

    step: int
    number: int
    sums: tuple[Tensor, ...]


class TailAverage:
    """Keeps enough of a run to tell the mean of its iterates since some later step.

    Neighbours are added up where they make less than an eighth of the run, so that some twenty sums are
    kept, however long it is.

    Source: Polyak and Juditsky (1992).
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._added = 0

    def add(self, step: int, tensors: Sequence[Tensor]) -> None:
        """Take the iterate after so many steps.

        Args:
            step: larger than those before.
            tensors: the same ones each time; they are copied.
        """
        self._added += 1
        self._parts.append(_Part(step, 1, tuple(tensor.detach().clone() for tensor in tensors)))
        while len(self._parts) > 1:
            before, last = self._parts[-2:]
            if before.number != last.number or _PARTS * 2 * last.number > self._added:
                break
            sums = tuple(map(torch.add, before.sums, last.sums))
            self._parts[-2:] = [_Part(before.step, 2 * last.number, sums)]

    def mean(self, since: int) -> tuple[Tensor, ...]:
        """The mean of the iterates after that step, or of the last ones alone if none is so late."""
        chosen = [part for part in self._parts if part.step > since] or self._parts[-1:]
        count = sum(part.number for part in chosen)
        together = zip(*(part.sums for part in chosen), strict=True)
        return tuple(torch.stack(sums).sum(0) / count for sums in together)

    def state(self) -> State:
        """All that was added, for another one to go on with."""
        return {"added": self._added, "parts": [tuple(part) for part in self._parts]}

    def go_on(self, state: State, tensors: Sequence[Tensor]) -> None:
        """Go on where another one was, with these tensors."""
        self._added = state["added"]
        self._parts = [
            _Part(step, number, tuple(s.to(t.device) for s, t in zip(sums, tensors, strict=True)))
            for step, number, sums in state["parts"]
        ]
