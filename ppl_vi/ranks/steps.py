"""One sum over processes in each step: loss, gradients, and a look whether all still draw alike."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_vi.data.sources import Batch
from ppl_vi.ranks.group import Ranks

_BITS = 2**12
"""Of a fingerprint of a generator; its square is exact in single precision."""


class SumOfSteps:
    """Sums the loss of a step and its gradients over all processes, in one collective.

    The loss of the rows of a process counts them for all rows. So the whole loss is the mean of these,
    weighted by the parts of the batch that processes have, and its gradient likewise.

    Args:
        ranks: the processes.

    Attributes:
        parted: whether generators drew apart, as where a program draws outside its sites as many
            numbers as it has rows; all then go on from that of the first process.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self.parted = ranks, False

    def __call__(self, loss: float, parameters: Mapping[str, Tensor], batch: Batch) -> float:
        """The whole loss; the parameters' gradients become those of the whole.

        Args:
            loss: of this process's rows of the batch.
            parameters: with their gradients.
            batch: the rows.
        """
        weight = 1 / self._ranks.size if batch.part is None else batch.part.share
        gradients = [_numbers(parameter) for parameter in parameters.values()]
        dtype = max((own.dtype for own in gradients), key=lambda d: torch.finfo(d).bits)
        device = gradients[0].device
        print_ = _fingerprint()
        there = [parameter.grad is not None for parameter in parameters.values()]
        told = [weight * loss if weight else 0.0, print_, print_**2, *map(float, there)]
        flat = torch.cat([own.to(device, dtype) for own in gradients])
        flat = flat * weight if weight else torch.zeros_like(flat)
        total = self._ranks.sum(torch.cat([flat, flat.new_tensor(told)]))
        whole, first, second, *counts = total[flat.numel() :].tolist()
        if second / self._ranks.size - (first / self._ranks.size) ** 2 > 0.1 / _BITS**2:
            self._bring_together(device)
        begin = 0
        for parameter, own, count in zip(parameters.values(), gradients, counts, strict=True):
            _put(parameter, total[begin : begin + own.numel()], count > 0)
            begin += own.numel()
        return float(whole)

    def _bring_together(self, device: torch.device) -> None:
        self.parted = True
        torch.set_rng_state(self._ranks.same(torch.get_rng_state()))
        if device.type == "cuda":
            torch.cuda.set_rng_state(self._ranks.same(torch.cuda.get_rng_state(device)), device)


def summed_over(ranks: Ranks) -> SumOfSteps | None:
    """What sums the steps of several processes; none for one alone."""
    return SumOfSteps(ranks) if ranks.size > 1 else None


def _numbers(parameter: Tensor) -> Tensor:
    """The gradient as real numbers, ``[n]``; zeros where there is none."""
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    dense = (gradient.to_dense() if gradient.is_sparse else gradient).detach()
    return (torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense).reshape(-1)


def _put(parameter: Tensor, numbers: Tensor, there: bool) -> None:
    if not there:
        return
    gradient = torch.empty_like(parameter)
    seen = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    seen.copy_(numbers.reshape(seen.shape))
    parameter.grad = gradient


def _fingerprint() -> float:
    """Of the generator's state, as a fraction."""
    return zlib.crc32(torch.get_rng_state().numpy().tobytes()) % _BITS / _BITS
