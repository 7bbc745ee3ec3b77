"""The variational autoencoder beside one written by hand in PyTorch, and importance-weighted training.

(a) Test ELBO after the same steps from the same weights, with batches in the same order: the 8x8 digits
    of scikit-learn (1,500 / 297 images, pixels above half of the largest value) with 2 and 16 latent
    dimensions, and with --data MNIST (nine tenths to train, binarized once by grey value, 784-400-20).
(b) With --data, importance-weighted training, K = 50 against K = 1: test log evidence of 5,000 draws.
    Burda et al. (2016), table 1, on all 60,000 images with one stochastic layer, binarized anew in
    each epoch: -86.76 (VAE, K = 1), -85.54 (K = 5), -84.78 (K = 50) nats.
(c) Time of a step at 784-400-20, batches of 128: compiled ``fit``, PyTorch by hand with fused Adam, and
    NumPyro's loop, the latter two from ``compare_peers``.

Usage: python benchmarks/vae_peers.py [--data NPZ] [--parts abc] [--epochs N] [--seed S] [--steps N]
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from peers import run_numpyro, run_torch
from peers.data import arrays_of
from peers.settings import PROBLEMS
from peers.tasks import STARTED, Task
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from ppl_vi import ELBO, ImportanceWeightedELBO, Objective, fit
from ppl_vi.data.sources import data_source
from ppl_vi.data.streaming import Stream
from ppl_vi.datasets import read_images
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE
from ppl_vi.networks import perceptron_decoder, perceptron_encoder
from ppl_vi.randomness import forked_rng

BATCH, RATE, DRAWS, EVIDENCE_DRAWS = 128, 1e-3, 20, 5_000
BURDA = {1: -86.76, 5: -85.54, 50: -84.78}


class Problem(NamedTuple):
    """Images, flat and binary, and the sizes of the networks."""

    name: str
    train: Tensor
    test: Tensor
    hidden: int
    size: int


class Networks(NamedTuple):
    """An encoder and a decoder."""

    encoder: nn.Module
    decoder: nn.Module


def digits(size: int) -> Problem:
    """The 8x8 digits."""
    images = torch.as_tensor(load_digits().data > 8).float()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return Problem(f"digits, {size}", images[:1500], images[1500:], 200, size)


def mnist(path: Path) -> Problem:
    """Handwritten digits, binarized once."""
    grey = read_images(path).flatten(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.bernoulli(grey, generator=generator)
    images = images[torch.randperm(len(images), generator=generator)]
    first = len(images) * 9 // 10
    return Problem("MNIST, 20", images[:first], images[first:], 400, 20)


def start_of(problem: Problem, seed: int) -> Networks:
    """The networks that every fit begins with."""
    torch.manual_seed(seed)
    pixels = problem.train.shape[1:]
    encoder = perceptron_encoder(pixels, problem.size, [problem.hidden])
    return Networks(encoder, perceptron_decoder(problem.size, pixels, [problem.hidden]))


def by_hand(problem: Problem, start: Networks, steps: int, seed: int) -> Networks:
    """PyTorch: one draw, the KL in closed form, fused Adam."""
    own = copy.deepcopy(start)
    parameters = [*own.encoder.parameters(), *own.decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    with forked_rng(seed=seed):
        stream = Stream(data_source(problem.train, BATCH))
        for _ in range(steps):
            (x,) = next(stream).args
            loc, scale = own.encoder(x)
            logits = own.decoder(loc + scale * torch.randn_like(loc))
            misfit = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            kl = 0.5 * (loc**2 + scale**2 - 1).sum() - scale.log().sum()
            optimizer.zero_grad()
            ((misfit + kl) / len(x)).backward()
            optimizer.step()
    return own


def by_fit(
    problem: Problem, start: Networks, steps: int, seed: int, objective: Objective
) -> Networks:
    """The same with ppl-vi."""
    own = copy.deepcopy(start)
    model = VAE(problem.train.shape[1:], problem.size, decoder=own.decoder)
    fit(
        model,
        EncoderGuide(own.encoder),
        problem.train,
        objective=objective,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=RATE),
        steps=steps,
        tol=None,
        batch_size=BATCH,
        seed=seed,
    )
    return own


def log_weights(networks: Networks, x: Tensor, draws: int) -> Tensor:
    """``[draws, N]``: log p(x, z) - log q(z | x), by hand."""
    loc, scale = networks.encoder(x)
    noise = torch.randn(draws, *loc.shape)
    z = loc + scale * noise
    logits = networks.decoder(z.flatten(0, 1)).reshape(draws, *x.shape)
    # log p(x | z) as one product and one softplus, without a copy of x for each draw
    log_p = torch.einsum("snp,np->sn", logits, x) - functional.softplus(logits).sum(-1)
    return log_p + (0.5 * noise**2 - 0.5 * z**2 + scale.log()).sum(-1)


def test_elbo(networks: Networks, problem: Problem) -> tuple[float, float]:
    """Nats per image, and the standard error of the draws."""
    with torch.no_grad(), forked_rng(seed=1):
        log_w = log_weights(networks, problem.test, DRAWS).double().mean(1)
    return log_w.mean().item(), log_w.std().item() / DRAWS**0.5


def test_log_evidence(networks: Networks, problem: Problem) -> float:
    """Nats per image, by importance weights of 5,000 draws."""
    total = 0.0
    with torch.no_grad(), forked_rng(seed=1):
        for x in problem.test.split(10):
            chunks = [log_weights(networks, x, 500) for _ in range(EVIDENCE_DRAWS // 500)]
            log_w = torch.cat(chunks).double()
            total += (log_w.logsumexp(0) - math.log(EVIDENCE_DRAWS)).sum().item()
    return total / len(problem.test)


def compare_bounds(problem: Problem, epochs: int, seed: int) -> None:
    """Part (a) for one problem."""
    steps = epochs * math.ceil(len(problem.train) / BATCH)
    start = start_of(problem, seed)
    elbos = {
        "by hand": test_elbo(by_hand(problem, start, steps, seed), problem),
        "ppl-vi": test_elbo(by_fit(problem, start, steps, seed, ELBO(1)), problem),
    }
    said = ", ".join(f"{name} {value:.2f} ± {se:.2f}" for name, (value, se) in elbos.items())
    gap = elbos["ppl-vi"][0] - elbos["by hand"][0]
    print(f"(a) {problem.name} latent dimensions, {steps} steps: test ELBO {said}; gap {gap:+.2f}")


def compare_importance_weights(problem: Problem, epochs: int, seed: int) -> None:
    """Part (b)."""
    steps = epochs * math.ceil(len(problem.train) / BATCH)
    start, found = start_of(problem, seed), {}
    for k in (1, 50):
        objective = ELBO(1) if k == 1 else ImportanceWeightedELBO(K=k, num_particles=1)
        found[k] = test_log_evidence(by_fit(problem, start, steps, seed, objective), problem)
        print(f"(b) {problem.name}, K = {k}, {steps} steps: test log evidence {found[k]:.2f} nats")
    quoted = ", ".join(f"K = {k}: {value}" for k, value in BURDA.items())
    print(f"(b) gain {found[50] - found[1]:+.2f}; Burda et al. on 60,000 images: {quoted}")


def compare_times(steps: int, seed: int) -> None:
    """Part (c)."""
    problem = PROBLEMS["vae"]
    arrays = arrays_of(problem)
    images = torch.from_numpy(arrays["x"])
    model = VAE((784,), 20)
    guide = EncoderGuide(perceptron_encoder((784,), 20))
    result = fit(
        model,
        guide,
        images,
        objective=ELBO(1),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=RATE),
        steps=steps,
        tol=None,
        batch_size=BATCH,
        compile=True,
        seed=seed,
    )
    ours = result.execution.step_seconds / result.num_steps
    print(f"(c) ppl-vi, compiled: {1e3 * ours:.2f} ms a step")
    os.environ[STARTED] = str(time.time())
    task = Task(problem, arrays, 100, torch.get_num_threads(), seed, False, False)
    for name, peer in (("PyTorch by hand", run_torch), ("NumPyro", run_numpyro)):
        theirs = peer.run(task).seconds_per_step
        print(f"(c) {name}: {1e3 * theirs:.2f} ms a step; ppl-vi takes {ours / theirs:.2f} of it")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="MNIST images, NPZ or IDX; left out without it")
    parser.add_argument("--parts", default="abc")
    parser.add_argument(
        "--epochs", type=int, default=60, help="of MNIST; digits take four times it"
    )
    parser.add_argument("--steps", type=int, default=2_000, help="timed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "a" in options.parts:
        for size in (2, 16):
            compare_bounds(digits(size), 4 * options.epochs, options.seed)
    if options.data is None:
        print("MNIST is left out: see --data")
    if options.data is not None and "a" in options.parts:
        compare_bounds(mnist(options.data), options.epochs, options.seed)
    if options.data is not None and "b" in options.parts:
        compare_importance_weights(mnist(options.data), options.epochs, options.seed)
    if "c" in options.parts:
        compare_times(options.steps, options.seed)


if __name__ == "__main__":
    main()
