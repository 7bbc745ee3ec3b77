"""Fits of several processes, each beside the same fit of one process: run by every process of a job.

Every case is fitted in each process together with the others, and once alone, and has to come to the
same.
Arguments: names of groups of cases.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ppl_vi import (
    ELBO,
    DisARM,
    FitResult,
    ImportanceWeightedELBO,
    LeaveOneOut,
    ScoreFunction,
    fit,
)
from ppl_vi.guides import CAVIGuide
from ppl_vi.sweeping import parting

RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
N = 23
Fit = Callable[..., FitResult]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 1


def clusters(size: int = 61) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    centers = 8 * torch.randn(3, 2, generator=generator)
    return centers[torch.arange(size) % 3] + torch.randn(size, 2, generator=generator)


def counts(size: int = 40) -> Tensor:
    rates = torch.where(torch.arange(size) % 2 == 0, 2.0, 9.0)
    return torch.poisson(rates, generator=torch.Generator().manual_seed(2))


def mine(x: Tensor) -> Tensor:
    """The part of one process, of very different sizes; the second of four has none."""
    ends = {2: (0, 0.8, 1), 4: (0, 0.45, 0.45, 0.9, 1)}[SIZE]
    first, last = (int(end * len(x)) for end in ends[RANK : RANK + 2])
    return x[first:last]


def normal_normal(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.5).to_event(1), obs=x)


def mixture(x: Tensor) -> None:
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample(
            "x", dist.Normal(mean[..., z] if mean.dim() == 1 else picked(mean, z), 1.0), obs=x
        )


def picked(mean: Tensor, z: Tensor) -> Tensor:
    return mean.gather(-1, z.reshape(-1, 1)) if z.dim() < 2 else mean[..., 0, :].T[z.squeeze(-1)]


def local(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", N, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.5).to_event(1), obs=x)


def autoencoder() -> tuple[Any, Any]:
    torch.manual_seed(7)
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.8).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def amortized(prior: Any, posterior: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    """One number for each row, whose posterior comes of a network."""
    torch.manual_seed(7)
    network = nn.Linear(3, 2)

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            mean = (2 * z + shift).unsqueeze(-1).expand(*(2 * z + shift).shape, 3)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(network(x)))

    return model, guide


def bernoulli() -> tuple[Any, Any]:
    return amortized(dist.Bernoulli(0.4), lambda out: dist.Bernoulli(logits=out[..., 0]))


def gamma() -> tuple[Any, Any]:
    return amortized(dist.Gamma(2.0, 1.0), lambda out: dist.Gamma(*out.exp().unbind(-1)))


def components(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3), pyro.plate("columns", 2, dim=-2):
        precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean.T[z], precision.T[z].rsqrt()).to_event(1), obs=x)


def full_components(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(2), 100 * torch.eye(2)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(mean[z], torch.eye(2)), obs=x)


def gamma_poisson(x: Tensor) -> None:
    hidden = pyro.sample("hidden", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, hidden))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def factors(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("columns", 3):
        loading = pyro.sample("loading", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = z.unsqueeze(-1) * loading
        pyro.sample("x", dist.Normal(mean, precision.rsqrt()).to_event(1), obs=x)


def regression(x: Tensor, y: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, precision.rsqrt()), obs=y)


def learned_width(x: Tensor) -> None:
    width = pyro.param("width", torch.tensor(2.0), constraint=dist.constraints.positive)
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, width), obs=x)


def half_cauchy(x: Tensor) -> None:
    width = pyro.sample("width", dist.HalfCauchy(1.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, width), obs=x)


def chains(x: Tensor) -> None:
    """Hidden Markov chains, which are the rows."""
    with pyro.plate("states", 2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2)))
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"x_{t}", dist.Normal(mean[z], 1.0), obs=x[:, t])


def scale_matrix(split: bool) -> dict[str, Callable[[Fit], Any]]:
    """The programs of the test of scales, whose gradients of an epoch are compared."""
    path = Path(__file__).parents[1] / "test_scale.py"
    spec = importlib.util.spec_from_file_location("scale", path)
    assert spec is not None and spec.loader is not None
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)

    def case(make: Any, plate: Any, batch_size: int | None) -> Callable[[Fit], Any]:
        def epoch(with_ranks: Fit) -> Any:
            torch.manual_seed(0)
            scale.fit, rows = with_ranks, tuple(scale.data())
            pair = make(plate)
            if batch_size is None:
                return scale.one_epoch(pair, rows, ELBO(num_particles=2), None)._asdict()
            dataset = TensorDataset(*rows)
            return scale.one_epoch(pair, dataset, ELBO(num_particles=2), batch_size)._asdict()

        return epoch

    makers = (scale.normal_normal, scale.mixture, scale.autoencoder)
    return {
        f"{make.__name__}, {name}, {size or 'all'}": case(make, plate, size)
        for make in makers
        for name, plate in scale.PLATES.items()
        for size in (None, scale.BATCH)
    }


def gradients(split: bool) -> dict[str, Callable[[Fit], Any]]:
    """Fits by gradients on all rows or on batches."""
    x, line = numbers(N, 3), numbers(N)
    whole = (lambda t: t) if split else mine
    sampled = ELBO(estimators={"z": ScoreFunction(LeaveOneOut())})
    return {
        "normal": lambda f: f(normal_normal, "normal", whole(x)),
        "captured": lambda f: f(normal_normal, "normal", whole(x), steps=150),
        "mixture": lambda f: f(mixture, "normal", whole(line), restarts=2),
        "autoencoder": lambda f: f(*autoencoder(), whole(x)),
        "minibatches": lambda f: f(*autoencoder(), whole(x), batch_size=5, steps=120),
        "score": lambda f: f(*bernoulli(), whole(x), objective=sampled),
        "gamma": lambda f: f(*gamma(), whole(x)),
        "rows": lambda f: f(local, "normal", whole(x)),
    }


def more_gradients(split: bool) -> dict[str, Callable[[Fit], Any]]:
    x, line = numbers(N, 3), numbers(N)
    whole = (lambda t: t) if split else mine
    pairs = ELBO(estimators={"z": DisARM()})
    rows = (lambda t: TensorDataset(t)) if split else whole
    return {
        "multivariate": lambda f: f(normal_normal, "multivariate_normal", whole(x)),
        "laplace": lambda f: f(normal_normal, "laplace", whole(x)),
        "flow": lambda f: f(normal_normal, "flow", whole(x), steps=10),
        "auto": lambda f: f(normal_normal, AutoNormal(normal_normal), whole(x)),
        "rest": lambda f: f(normal_normal, "normal", whole(x), steps=4_000, tol="auto"),
        "search": lambda f: f(normal_normal, "normal", whole(x), optimizer="search"),
        "enumerated": lambda f: f(*bernoulli(), whole(x)),
        "pairs": lambda f: f(*bernoulli(), whole(x), objective=pairs),
        "weighted": lambda f: f(*autoencoder(), whole(x), objective=ImportanceWeightedELBO(4)),
        "theirs": lambda f: f(*autoencoder(), whole(x), objective=Trace_ELBO()),
        "clipped": lambda f: f(*autoencoder(), whole(x), optimizer=pyro.optim.ClippedAdam({})),
        "dataset": lambda f: f(*autoencoder(), rows(x), batch_size=5),
        "rows of batches": lambda f: f(local, "normal", whole(x), batch_size=5),
        "annealed": lambda f: f(*autoencoder(), whole(x), kl_schedule=lambda t: min(1.0, t / 20)),
        "called": lambda f: f(*autoencoder(), whole(x), callbacks=[lambda p: p.step == 7]),
        "few": lambda f: f(*autoencoder(), x[:1] if split or RANK == SIZE - 1 else x[:0], steps=5),
        "restarts": lambda f: f(mixture, "normal", whole(line), restarts=3, steps=20),
    }


def sweeps(split: bool) -> dict[str, Callable[[Fit], Any]]:
    """Fits by coordinate ascent."""
    whole = (lambda t: t) if split else mine
    x = clusters()
    return {
        "mixture": lambda f: f(components, "cavi", whole(x), steps=50),
        "gamma-poisson": lambda f: f(gamma_poisson, "cavi", whole(counts()), steps=50),
        "factors": lambda f: f(factors, "cavi", whole(numbers(N, 3)), steps=50),
        "batches": lambda f: f(components, "cavi", whole(x), batch_size=13, steps=12),
    }


def more_sweeps(split: bool) -> dict[str, Callable[[Fit], Any]]:
    whole = (lambda t: t) if split else mine
    x, line, inputs = clusters(), numbers(N), numbers(N, 3)
    outputs = inputs @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * line
    apart = CAVIGuide(regression, structured=False)
    return {
        "full": lambda f: f(full_components, "cavi", whole(x), steps=50),
        "regression": lambda f: f(regression, apart, (whole(inputs), whole(outputs)), steps=50),
        "learned": lambda f: f(learned_width, "cavi", whole(line), steps=20),
        "chains": lambda f: f(chains, "cavi", whole(numbers(11, 4)), steps=20),
        "rest": lambda f: f(components, "cavi", whole(x), steps=200, tol="auto"),
        "restarts": lambda f: f(components, "cavi", whole(x), steps=2, restarts=2),
        "batches of factors": lambda f: f(factors, "cavi", whole(inputs), batch_size=7, steps=12),
        "one row": lambda f: f(
            gamma_poisson, "cavi", counts(1) if split or RANK == 0 else counts(0), steps=5
        ),
    }


def searched(split: bool) -> dict[str, Callable[[Fit], Any]]:
    """Sweeps that search along gradients, whose rounding errors grow."""
    return {"half-Cauchy": lambda f: f(half_cauchy, "cavi", numbers(N), steps=10)}


def streamed(split: bool) -> dict[str, Callable[[Fit], Any]]:
    """Sweeps over rows that are looked at in parts, by one process or by several."""
    whole = (lambda t: t) if split else mine
    parting._MOST_AT_ONCE, parting._IN_A_PART = 0, 120
    return {
        "parts": lambda f: f(full_components, "cavi", whole(clusters()), steps=10),
        "parts of factors": lambda f: f(factors, "cavi", whole(numbers(N, 3)), steps=10),
    }


def short(split: bool) -> dict[str, Callable[[Fit], Any]]:
    """A few of all kinds."""
    x, whole = numbers(N, 3), (lambda t: t) if split else mine
    return {
        "normal": lambda f: f(normal_normal, "normal", whole(x), steps=12),
        "minibatches": lambda f: f(*autoencoder(), whole(x), batch_size=5, steps=12),
        "gamma": lambda f: f(*gamma(), whole(x), steps=12),
        "mixture": lambda f: f(full_components, "cavi", whole(clusters()), steps=10),
        "gamma-poisson": lambda f: f(gamma_poisson, "cavi", whole(counts()), steps=10),
    }


GROUPS = {
    "short": (short, 1e-10),
    "scale": (scale_matrix, 1e-10),
    "gradients": (gradients, 1e-6),
    "more_gradients": (more_gradients, 1e-6),
    "sweeps": (sweeps, 1e-10),
    "more_sweeps": (more_sweeps, 1e-10),
    "searched": (searched, 1e-6),
    "streamed": (streamed, 1e-10),
}


def described(result: Any, split: bool) -> dict[str, Any]:
    """All numbers of a fit, by name; those of rows too, where every process has all of them."""
    if not isinstance(result, FitResult):
        return dict(result)
    kept = {"losses": result.losses.double(), **result.params}
    if isinstance(result.guide, CAVIGuide):
        factors = result.guide.factors()
        rows = set() if split and result.job.data_plates == frozenset() else {"z", "rate"}
        common = {n: f for n, f in factors.items() if not rows & {n.split("_")[0]}}
        kept |= {
            f"mean of {n}": f.mean for n, f in common.items() if f.support.is_discrete is False
        }
        kept |= {f"states of {n}": f.probs for n, f in common.items() if hasattr(f, "probs")}
        kept |= {f"counts of {n}": c for n, c in result.guide.occupancies().items()}
    # Processes look at larger parts together than one alone, with other draws in each.
    for name in ("bound",) if result.job.source.in_parts else ("bound", "elbo"):
        estimate = getattr(result, name)
        kept[name] = torch.tensor([float(estimate), estimate.standard_error or 0.0])
    return kept


def run(case: Callable[[Fit], Any], shard: str | None) -> Any:
    def with_ranks(*given: Any, **options: Any) -> FitResult:
        usual = {"steps": 40, "seed": 1, "progress": False, "tol": None, "shard": shard}
        return fit(*given, **{**usual, **options})

    return case(with_ranks)


@cache
def alone(group: str, name: str) -> Any:
    """What a case comes to in one process, whichever rows others have."""
    make, _ = GROUPS[group]
    return run(make(True)[name], None)


def main(groups: list[str]) -> None:
    torch.set_default_dtype(torch.float64)
    for named in groups:
        group, _, shard = named.partition(":")
        make, tolerance = GROUPS[group]
        split = shard != "given"
        for name, case in make(split).items():
            began = time.perf_counter()
            found = described(run(case, "split" if split else "given"), split)
            wanted = described(alone(group, name), split)
            try:
                torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
            except AssertionError as error:
                raise AssertionError(f"{named}, {name}: {error}") from None
            print(f"rank {RANK}: {named}, {name} {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
