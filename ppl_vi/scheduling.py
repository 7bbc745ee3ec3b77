"""Numbers that have another value in each step of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scheduled:
    """Numbers that are known beforehand for every step, and that a step reads from one tensor.

    A captured step holds the tensor, a compiled block of steps is handed their rows of the table: so
    nothing is captured or compiled anew when the numbers change.

    Attributes:
        table: ``[steps, size]``.
        current: ``[size]``, those of the present step; the program's own tensor.
    """

    table: Tensor
    current: Tensor

    def use(self, step: int) -> None:
        """Let the program read the numbers of this step, counted from 0."""
        self.current.copy_(self.table[step])

    def rows(self, step: int, count: int) -> Tensor:
        """``[count, size]``, from this step on."""
        return self.table[step : step + count]

    @property
    def settled(self) -> int:
        """The step from which on the numbers are the same."""
        changes = (self.table[1:] != self.table[:-1]).any(1).nonzero()
        return int(changes[-1]) + 1 if len(changes) else 0
