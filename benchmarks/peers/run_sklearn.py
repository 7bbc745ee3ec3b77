"""scikit-learn's variational mixture: coordinate ascent, with weights and variances to learn too."""

from __future__ import annotations

import time
import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from peers.settings import COMPONENTS
from peers.tasks import Run, Task, since_start

_SWEEPS = 100


def run(task: Task) -> Run:
    """Fit to its own convergence, and time sweeps."""
    x = task.arrays["x"].astype("float64")
    mixture = _mixture(task, 1e-3, 1_000).fit(x)
    solved = since_start()
    notes = {"seconds_to_solution": solved, "sweeps": int(mixture.n_iter_)}

    def seconds(sweeps: int) -> float:
        started = time.perf_counter()
        _mixture(task, 0.0, sweeps).fit(x)
        return time.perf_counter() - started

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sweeps are counted, not awaited
        short = seconds(1)
        return Run((seconds(1 + _SWEEPS) - short) / _SWEEPS, notes=notes)


def _mixture(task: Task, tolerance: float, sweeps: int) -> BayesianGaussianMixture:
    return BayesianGaussianMixture(
        n_components=COMPONENTS,
        covariance_type="spherical",
        weight_concentration_prior_type="dirichlet_distribution",
        tol=tolerance,
        max_iter=sweeps,
        random_state=task.seed,
    )
