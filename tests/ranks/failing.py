"""What processes are told where one of them fails: run by every process of a job.

The second process fails in every case; each of them prints what it was told. The last case kills it.
"""

import os
import signal
import sys

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi import Progress, fit
from ppl_vi.ranks import group

RANK = int(os.environ.get("RANK", 0))
SECOND = RANK == 1


def model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def without_plate(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x)]).to_event(1), obs=x)


def broken(progress: Progress) -> bool:
    if SECOND and progress.step == 3:
        raise OSError("a disk of the second process is full")
    return False


def killed(progress: Progress) -> bool:
    if SECOND and progress.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return False


def huge(x: Tensor) -> Tensor:
    """Data whose density overflows in the second process alone."""
    return x * 1e30 if SECOND else x


x = torch.arange(6.0)
CASES = {
    "data": lambda: fit(model, "normal", x / 0 if SECOND else x, steps=5, progress=False),
    "settings": lambda: fit(model, "normal", x, steps=5 + RANK, progress=False),
    "lengths": lambda: fit(model, "normal", x[RANK:], steps=5, progress=False),
    "kinds": lambda: fit(model, "normal", x if RANK else x[:, None], shard="given", steps=5),
    "plates": lambda: fit(without_plate, "normal", x, steps=5, progress=False),
    "callback": lambda: fit(model, "normal", x, steps=9, progress=False, callbacks=[broken]),
    "overflow": lambda: fit(
        model,
        lambda x: pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0)),
        huge(x),
        steps=5,
        shard="given",
        progress=False,
    ),
    "none": lambda: fit(model, "normal", x, steps=5, progress=False).stop_reason,
    "killed": lambda: fit(model, "normal", x, steps=9, progress=False, callbacks=[killed]),
}


if __name__ == "__main__":
    group._GRACE = 0.0  # no process that told its reason ends here, so none need wait for it
    for name, case in CASES.items():
        try:
            told = str(case())
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        print(f"{name} | {told}".replace("\n", " "), flush=True)
    sys.exit(0)
