"""A fit of two processes, of which the second is killed once: ``dying.py KIND FOLDER STEP``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi import Progress, fit

NORMAL = torch.randn(201, 2, generator=torch.Generator().manual_seed(3))
POINTS = NORMAL + torch.where(torch.arange(201) < 100, -3.0, 3.0)[:, None]
OPTIONS: dict[str, dict[str, Any]] = {
    "all rows": {"guide": "normal", "steps": 300, "checkpoint_every": 40},
    "batches": {"guide": "normal", "steps": 300, "checkpoint_every": 40, "batch_size": 64},
    "sweeps": {"guide": "cavi", "steps": 30, "checkpoint_every": 4},
}


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(means[z], 1.0).to_event(1), obs=x)


def main(kind: str, folder: Path, step: int) -> None:
    def die(progress: Progress) -> None:
        died = folder / "died"
        if progress.step == step and os.environ["RANK"] == "1" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(
        mixture,
        data=POINTS,
        tol=None,
        seed=0,
        progress=False,
        callbacks=[die],
        checkpoint=folder / "run.ckpt",
        resume=True,
        **OPTIONS[kind],
    )
    if os.environ["RANK"] == "0":
        kept = [*result.params.values(), *result.guide.buffers(), result.losses]
        torch.save([tensor.detach().clone() for tensor in kept], folder / "kept.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
