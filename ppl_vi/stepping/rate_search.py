"""A learning rate from short trial runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.data.streaming import Stream
from ppl_vi.parameters import FittedParameters
from ppl_vi.randomness import forked_rng
from ppl_vi.ranks.steps import summed_over
from ppl_vi.stepping.optimization import TorchStepper
from ppl_vi.stepping.runners import EagerRunner

RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_STEPS, _JUDGED = 100, 25


def searched_rate(
    loss_and_grads: Callable[[Batch], float],
    source: DataSource,
    parameters: Mapping[str, Tensor],
    start: FittedParameters,
) -> float:
    """The rate of Adam that brings the loss lowest in a hundred steps from the start.

    Every rate sees the same batches and the same draws; the mean of its last 25 losses counts, and a
    rate with a loss that is not finite among them is out. Parameters, and the random state, are left as
    they were. A hundred steps tell nothing of a slow climb after them: the rate is where a fit begins.

    Args:
        loss_and_grads: the loss on a batch; it adds to the parameters' gradients.
        source: the data.
        parameters: those that move.
        start: all tensors of the programs, where each trial begins.
    """
    losses = [_tried(rate, loss_and_grads, source, parameters, start) for rate in RATES]
    best = min(zip(losses, RATES, strict=True))
    return best[1]


def _tried(
    rate: float,
    loss_and_grads: Callable[[Batch], float],
    source: DataSource,
    parameters: Mapping[str, Tensor],
    start: FittedParameters,
) -> float:
    with forked_rng(seed=0):
        adam = torch.optim.Adam(list(parameters.values()), lr=rate, betas=(0.9, 0.99))
        stepper = TorchStepper(adam, parameters)
        stream, summed = Stream(source), summed_over(source.ranks)
        runner = EagerRunner(
            loss_and_grads, stream, stepper, "skip", lambda batch: "", summed=summed
        )
        taken = runner.advance(_STEPS)[-_JUDGED:]
    start.restore()
    return _mean([loss for loss, _ in taken]) if all(finite for _, finite in taken) else math.inf


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)
