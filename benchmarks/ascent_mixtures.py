"""Coordinate ascent on Gaussian mixtures beside scikit-learn's, sweep for sweep.

Full covariances have the same joint factors, and their bounds are compared first, sweep by sweep;
scikit-learn's diagonal model has other expectations, and is timed only.

Usage: python benchmarks/ascent_mixtures.py [--rows N] [--components K] [--dimension D] [--turns T]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import eye_like
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from ppl_vi import fit
from ppl_vi.conjugacy.ascent import weighing
from ppl_vi.guides import CAVIGuide
from ppl_vi.program import weighted_sum

_SWEEPS = 20
_COMPARED = 5
_SAME = 1e-10
_APART = 0.7
"""Between centers, in deviations of the clusters: those that overlap take many sweeps."""
_CONCENTRATION, _MEAN_PRECISION = 1.0, 0.01


class FullMixture:
    """The model of ``BayesianGaussianMixture(covariance_type="full")`` as a Pyro program."""

    def __init__(self, components: int) -> None:
        self.components = components

    def __call__(self, x: Tensor) -> None:
        dimension, identity = x.shape[1], eye_like(x, x.shape[1])
        freedom = torch.tensor(dimension + 2.0).to(x)
        pi = pyro.sample("pi", dist.Dirichlet(x.new_full((self.components,), _CONCENTRATION)))
        with pyro.plate("components", self.components):
            precision = pyro.sample("precision", dist.Wishart(freedom, precision_matrix=identity))
            mean = pyro.sample(
                "mean",
                dist.MultivariateNormal(
                    x.new_zeros(dimension), precision_matrix=_MEAN_PRECISION * precision
                ),
            )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(pi))
            pyro.sample("x", dist.MultivariateNormal(mean[z], precision_matrix=precision[z]), obs=x)

    def initial_values(self, x: Tensor) -> dict[str, Tensor]:
        """Rows as means, and precisions of one."""
        identity = eye_like(x, x.shape[1]).expand(self.components, -1, -1)
        return {"mean": x[: self.components], "precision": identity}


class DiagonalMixture(FullMixture):
    """The same with a precision for each dimension."""

    def __call__(self, x: Tensor) -> None:
        two, zero = x.new_full((x.shape[1],), 2.0), x.new_zeros(x.shape[1])
        pi = pyro.sample("pi", dist.Dirichlet(x.new_full((self.components,), _CONCENTRATION)))
        with pyro.plate("components", self.components):
            tau = pyro.sample("tau", dist.Gamma(two, 1.0).to_event(1))
            scale = (_MEAN_PRECISION * tau).rsqrt()
            mean = pyro.sample("mean", dist.Normal(zero, scale).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(pi))
            pyro.sample("x", dist.Normal(mean[z], tau[z].rsqrt()).to_event(1), obs=x)

    def initial_values(self, x: Tensor) -> dict[str, Tensor]:
        """Rows as means, and precisions of one."""
        return {"mean": x[: self.components], "tau": torch.ones_like(x[: self.components])}


class IndependentDiagonalMixture(DiagonalMixture):
    """With means whose prior does not know the precisions: two blocks of factors."""

    def __call__(self, x: Tensor) -> None:
        two, zero = x.new_full((x.shape[1],), 2.0), x.new_zeros(x.shape[1])
        pi = pyro.sample("pi", dist.Dirichlet(x.new_full((self.components,), _CONCENTRATION)))
        with pyro.plate("components", self.components):
            tau = pyro.sample("tau", dist.Gamma(two, 1.0).to_event(1))
            mean = pyro.sample("mean", dist.Normal(zero, 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(pi))
            pyro.sample("x", dist.Normal(mean[z], tau[z].rsqrt()).to_event(1), obs=x)


def main() -> None:
    """Compare the bounds, then time sweeps in turns, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = options.components, options.dimension
    centers = _APART * torch.randn(shape, generator=generator)
    labels = torch.randint(options.components, (options.rows,), generator=generator)
    x = centers[labels] + torch.randn(options.rows, options.dimension, generator=generator)
    gap = largest_gap(x, options.components)
    if gap > _SAME:
        raise SystemExit(f"the bounds of full covariances differ by {gap:.1e}: nothing to time")
    print(f"bounds of {_COMPARED} sweeps equal to {gap:.1e}, full covariances, float64")
    print(timed(x, options.components, options.turns).to_string(index=False))


def largest_gap(x: Tensor, components: int) -> float:
    """The largest relative difference between both bounds' rises, sweep by sweep, in float64."""
    torch.set_default_dtype(torch.float64)
    x = x.double()
    model = FullMixture(components)
    guide = CAVIGuide(model, structured=True)
    guide.begin((x,), {}, model.initial_values(x))
    guide.sweep()
    theirs = _theirs("full", x, components, 1)
    _place(theirs, guide)
    own, their = [], []
    for _ in range(_COMPARED):
        own.append(_held_bound(guide))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs.fit(x.numpy())
        their.append(theirs.lower_bound_)
    torch.set_default_dtype(torch.float32)
    rises = np.diff(own), np.diff(their)
    return float(np.abs(rises[0] - rises[1]).max() / np.abs(own).max())


def _held_bound(guide: CAVIGuide) -> float:
    """The bound after a sweep with the responsibilities from before it, as scikit-learn gives it."""
    ascent = guide._begun()
    weights = ascent.weights(guide._state())[1]
    guide.sweep()
    state = guide._state()
    terms = ascent.terms(ascent.moments(state))
    (r,) = weights.values()
    entropy = ascent._entropy(state, terms) - torch.special.xlogy(r, r).sum()
    return float((weighted_sum(terms, weighing(weights)) + entropy).detach())


def _theirs(kind: str, x: Tensor, components: int, sweeps: int) -> BayesianGaussianMixture:
    dimension = x.shape[1]
    return BayesianGaussianMixture(
        n_components=components,
        covariance_type=kind,
        reg_covar=0,
        tol=0,
        max_iter=sweeps,
        warm_start=True,
        init_params="random_from_data",
        random_state=0,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=_CONCENTRATION,
        mean_precision_prior=_MEAN_PRECISION,
        mean_prior=np.zeros(dimension),
        degrees_of_freedom_prior=dimension + 2,
        covariance_prior=np.eye(dimension) if kind == "full" else np.ones(dimension),
    )


def _place(theirs: BayesianGaussianMixture, guide: CAVIGuide) -> None:
    """Set scikit-learn's model to the factors of a guide."""
    pi, precision, mean = (guide.factors()[name] for name in ("pi", "precision", "mean"))
    inverse_scale, freedom = precision.precision_matrix, precision.df
    spread = (mean.scale_tril @ mean.scale_tril.mT)[:, 0, 0] * mean.df / inverse_scale[:, 0, 0]
    theirs.weight_concentration_ = pi.concentration.numpy()
    theirs.means_, theirs.mean_precision_ = mean.loc.numpy(), (1 / spread).numpy()
    theirs.degrees_of_freedom_ = freedom.numpy()
    theirs.covariances_ = (inverse_scale / freedom[:, None, None]).numpy()
    theirs.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(theirs.covariances_))
    theirs.converged_, theirs.lower_bound_ = False, -np.inf


def timed(x: Tensor, components: int, turns: int) -> pd.DataFrame:
    """Milliseconds a sweep, medians over turns, and how many times faster than scikit-learn's."""
    ways: dict[tuple[str, str], Callable[[], float]] = {}
    for kind, model, structured in (
        ("diagonal", DiagonalMixture(components), True),
        ("diagonal, independent", IndependentDiagonalMixture(components), False),
        ("full", FullMixture(components), True),
    ):
        for dtype in (torch.float32, torch.float64):
            name = str(dtype).removeprefix("torch.")
            ways[kind, f"ppl-vi {name}"] = _own_sweep(model, structured, x.to(dtype), True)
        ways[kind, "ppl-vi float32, captured"] = _own_sweep(model, structured, x, "auto")
        theirs = "full" if kind == "full" else "diag"
        for array in (x.numpy(), x.double().numpy()):
            name = f"scikit-learn {array.dtype}"
            ways[kind, name] = _their_sweep(theirs, x, components, array)
    measured: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, sweep in ways.items():
            measured[way].append(1e3 * sweep())
    medians = {way: float(np.median(times)) for way, times in measured.items()}
    rows = [
        {
            "covariances": kind,
            "by": by,
            "ms a sweep": round(median, 1),
            "times scikit-learn float32": round(medians[kind, "scikit-learn float32"] / median, 2),
        }
        for (kind, by), median in medians.items()
    ]
    return pd.DataFrame(rows)


def _own_sweep(model: Any, structured: bool, x: Tensor, compile: Any) -> Callable[[], float]:
    """The median time between the last sweeps of a fit, the bound of each included."""

    def measure() -> float:
        torch.set_default_dtype(x.dtype)
        times: list[float] = []
        fit(
            model,
            CAVIGuide(model, structured=structured),
            x,
            steps=_SWEEPS,
            compile=compile,
            seed=0,
            progress=False,
            callbacks=[lambda _: times.append(time.perf_counter())],
        )
        torch.set_default_dtype(torch.float32)
        if len(times) < _SWEEPS:
            raise SystemExit(f"converged after {len(times)} sweeps: there are none to time")
        return float(np.median(np.diff(times)[-_SWEEPS // 2 :]))

    return measure


def _their_sweep(kind: str, x: Tensor, components: int, array: Any) -> Callable[[], float]:
    """The time of sweeps in a long run less that of a short one."""

    def measure() -> float:
        seconds = []
        for sweeps in (1, _SWEEPS // 2 + 1):
            theirs = _theirs(kind, x, components, sweeps)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                started = time.perf_counter()
                theirs.fit(array)
            seconds.append(time.perf_counter() - started)
        return (seconds[1] - seconds[0]) / (_SWEEPS // 2)

    return measure


if __name__ == "__main__":
    main()
