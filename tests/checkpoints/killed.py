"""Fits that are killed: each line ``PROBLEM WISH FOLDER SECONDS`` of the input resumes one.

It is a copy of this process, which has imported all it needs, and is killed after so many seconds,
unless it ended before; whether it did is told.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vi import ELBO, NeuralBaseline, ScoreFunction, fit
from ppl_vi.checkpoints import write
from ppl_vi.compilation import choosing
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE, BayesianGMM, ConjugateGMM
from ppl_vi.networks import perceptron_encoder

ROWS = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
CLUSTERS = ROWS + 4.0 * torch.randint(3, (400, 1), generator=torch.Generator().manual_seed(1))
IMAGES = torch.rand(300, 64, generator=torch.Generator().manual_seed(2)).round()


def coins(x: Tensor) -> None:
    with pyro.plate("data", 400, subsample_size=len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x[:, 0])


def coin_guide(x: Tensor) -> None:
    weight, bias = pyro.param("weight", torch.zeros(2)), pyro.param("bias", torch.tensor(0.1))
    with pyro.plate("data", 400, subsample_size=len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x @ weight + bias))


def problem(name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Model, guide, data and settings."""
    torch.manual_seed(5)
    if name == "mixture":
        return BayesianGMM(3), "normal", CLUSTERS, {"steps": 300, "restarts": 2}
    if name == "cavi":
        return ConjugateGMM(6), "cavi", CLUSTERS, {"steps": 60, "restarts": 2}
    if name == "vae":
        guide = EncoderGuide(perceptron_encoder((64,), 3, [32]))
        return VAE((64,), 3, hidden=[32]), guide, IMAGES, {"steps": 300, "batch_size": 64}
    baseline = NeuralBaseline(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))
    objective = ELBO(2, estimators={"z": ScoreFunction(baseline)})
    settings = {"objective": objective, "batch_size": 50, "steps": 300}
    return coins, coin_guide, CLUSTERS, settings


def main(name: str, wish: str, folder: Path) -> None:
    """Resume a fit, and write what came of it."""
    if wish == "captured":
        choosing.repays = lambda graph, steps: False
    model, guide, data, settings = problem(name)
    compile: Any = {"eager": False, "captured": "auto", "compiled": True}[wish]
    told = fit(
        model,
        guide,
        data,
        compile=compile,
        tol=None,
        seed=0,
        progress=False,
        checkpoint=folder / "run.ckpt",
        checkpoint_every=20,
        resume=True,
        **settings,
    )
    swept = list(told.job.guide.tensors()) if hasattr(told.job.guide, "tensors") else []
    kept = {"values": list(told.fitted.values), "swept": swept, "losses": told.losses}
    write(folder / "result", {**kept, "bound": float(told.bound), "mode": told.execution.mode})


def killed(process: int, seconds: float) -> bool:
    """Whether a process has to be killed."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done and status:
            raise RuntimeError(f"the process ended with {status}.")
        if done:
            return False
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.002)


if __name__ == "__main__":
    for line in sys.stdin:
        name, wish, folder, seconds = line.split()
        process = os.fork()
        if process == 0:
            main(name, wish, Path(folder))
            os._exit(0)
        print("killed" if killed(process, float(seconds)) else "ended", flush=True)
