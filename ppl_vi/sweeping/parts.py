"""Sums over all rows, a part of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.data.sources import Batch
from ppl_vi.job import Job


@dataclass(frozen=True)
class Parts:
    """The rows of a data set in parts, which sums run over.

    Within a part of B_c of N rows, each counts N / B_c times. What all rows say of anything that is
    affine in sums over them (the ELBO, its gradients in mean parameters) is therefore the mean of what
    the parts say, weighted by their shares:

    f(all rows) = Σ_c (B_c / N) f(rows of part c)

    Several processes have each a part of every part, and sum once at the end.

    Attributes:
        job: the model and its data, whose batches in order are the parts.
    """

    job: Job

    def total(
        self, program: Callable[[Batch], Sequence[Tensor]], like: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The weighted sum of what a program gives for each part, in float64, then as it was.

        Args:
            program: gives small tensors for a part; it runs under the handler of the part.
            like: tensors of the shapes, types and device that it gives, from no rows at all.
        """
        sizes = [tensor.numel() for tensor in like]
        sums = torch.zeros(sum(sizes), dtype=torch.float64, device=like[0].device)
        for batch in self.job.source.sequence():
            if not batch.own:
                continue
            with self.job.handler(batch):
                own = program(batch)
            share = batch.own / (self.job.source.num_rows or 1)
            flat = [tensor.detach().reshape(-1).to(sums.dtype) for tensor in own]
            sums.add_(torch.cat(flat), alpha=share)
        found = zip(like, self.job.ranks.sum(sums).split(sizes), strict=True)
        return tuple(part.reshape(tensor.shape).to(tensor.dtype) for tensor, part in found)
