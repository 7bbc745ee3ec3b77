"""BayesPy: the same mixture with q(z) q(mu), by coordinate ascent; its bound is a lower one."""

from __future__ import annotations

import time
import warnings

import bayespy
import numpy as np
from bayespy.inference import VB
from bayespy.nodes import Categorical, Gaussian, GaussianARD, Mixture

from peers.settings import COMPONENTS
from peers.tasks import Run, Task, since_start

_TOLERANCE, _MOST, _SWEEPS = 1e-6, 1_000, 20


def run(task: Task) -> Run:
    """Fit to convergence, and time sweeps."""
    warnings.simplefilter("ignore")  # it speaks of NumPy's coming changes
    x = task.arrays["x"].astype("float64")
    ascent = _ascent(task, x)
    ascent.update(repeat=_MOST, tol=_TOLERANCE, verbose=False)
    notes = {"seconds_to_solution": since_start(), "sweeps": int(ascent.iter)}
    notes["version"] = bayespy.__version__
    started = time.perf_counter()
    ascent.update(repeat=_SWEEPS, tol=0.0, verbose=False)
    return Run((time.perf_counter() - started) / _SWEEPS, notes=notes)


def _ascent(task: Task, x: np.ndarray) -> VB:
    equal = np.full(COMPONENTS, 1 / COMPONENTS)
    mu = GaussianARD(0, 1 / 25, shape=(2,), plates=(COMPONENTS,), name="mu")
    z = Categorical(equal, plates=(len(x),), name="z")
    rows = Mixture(z, Gaussian, mu, np.identity(2), name="x")
    rows.observe(x)
    mu.initialize_from_value(task.arrays["start_loc"].reshape(COMPONENTS, 2).astype("float64"))
    return VB(rows, z, mu)
