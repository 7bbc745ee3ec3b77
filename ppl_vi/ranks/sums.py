"""Sums over all rows of what several processes found on theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.program.row_draws import Part

__all__ = ["SumOverParts"]


@dataclass(frozen=True)
class SumOverParts:
    """The whole of quantities that every process has counted for all rows: their weighted mean.

    What belongs to no row then counts once, and each row as often as it should.

    Args:
        part: the rows of this process.
    """

    part: Part

    def total(self, own: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The whole of each tensor, in one collective.

        Args:
            own: what the process found on its rows, counted for all of them.
        """
        if not own:
            return ()
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in own])
        whole = self.part.sum(flat * self.part.share if self.part.own else torch.zeros_like(flat))
        pieces = whole.split([tensor.numel() for tensor in own])
        return tuple(
            piece.reshape(tensor.shape).to(tensor.dtype)
            for piece, tensor in zip(pieces, own, strict=True)
        )
