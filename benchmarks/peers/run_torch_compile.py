"""The hand-written torch loss, draws and batches included, through ``torch.compile``.

The compiler makes one kernel set for the loss and one for its gradient. The fused Adam is one call.
"""

from __future__ import annotations

import torch

from peers.run_torch import run_wrapped
from peers.tasks import Run, Task


def run(task: Task) -> Run:
    """Fit."""
    return run_wrapped(task, lambda loss: torch.compile(loss, fullgraph=True))
