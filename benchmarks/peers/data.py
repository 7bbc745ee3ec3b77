"""The data of every problem and the starts of every fit, from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peers.settings import (
    CODE,
    COMPONENTS,
    FEATURES,
    GROUPS,
    HIDDEN,
    IN_GROUP,
    PIXELS,
    ROWS,
    Problem,
)

Arrays = dict[str, np.ndarray]
"""Data by name; what a fit starts at has names with ``start_`` before them."""

_OFFSET, _SCALE = 0.5, 0.1
"""How far from the true centres mixtures start, and the scale of every guide at its start."""


def arrays_of(problem: Problem) -> Arrays:
    """Data and starts in single precision."""
    random = np.random.default_rng(20_240_101)
    made = _MAKERS[problem.model](random, problem)
    if problem.sites and "start_loc" not in made:
        made["start_loc"] = np.zeros(sum(site.size for site in problem.sites))
    if problem.sites:
        made["start_log_scale"] = np.full_like(made["start_loc"], np.log(_SCALE))
    return {name: np.asarray(array, np.float32) for name, array in made.items()}


def _mixture(random: np.random.Generator, problem: Problem) -> Arrays:
    angles = 2 * np.pi * np.arange(COMPONENTS) / COMPONENTS
    centres = 6 * np.stack([np.cos(angles), np.sin(angles)], 1)
    # Every component has its share of few data too, so that all peers have one optimum near.
    labels = np.arange(problem.num_data) % COMPONENTS
    data = centres[labels] + random.standard_normal((problem.num_data, 2))
    return {"x": data, "start_loc": (centres + _OFFSET).reshape(-1)}


def _schools(random: np.random.Generator, problem: Problem) -> Arrays:
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return {"y": effects, "error": errors}


def _logistic(random: np.random.Generator, problem: Problem) -> Arrays:
    x = random.standard_normal((problem.num_data, FEATURES))
    logits = x @ (0.5 * random.standard_normal(FEATURES))
    return {"x": x, "y": random.random(problem.num_data) < 1 / (1 + np.exp(-logits))}


def _hierarchy(random: np.random.Generator, problem: Problem) -> Arrays:
    means = 2.0 + random.standard_normal((GROUPS, 1))
    return {"y": means + 1.5 * random.standard_normal((GROUPS, IN_GROUP))}


def _vae(random: np.random.Generator, problem: Problem) -> Arrays:
    codes = random.standard_normal((ROWS, 10))
    logits = 1.5 * codes @ random.standard_normal((10, PIXELS)) / np.sqrt(10) - 1.0
    images = random.random((ROWS, PIXELS)) < 1 / (1 + np.exp(-logits))
    layers = {
        "encoder": (PIXELS, HIDDEN),
        "code_loc": (HIDDEN, CODE),
        "code_log_scale": (HIDDEN, CODE),
        "decoder": (CODE, HIDDEN),
        "pixels": (HIDDEN, PIXELS),
    }
    made = {"x": images}
    for name, (inputs, outputs) in layers.items():
        bound = inputs**-0.5
        made[f"start_{name}_weight"] = random.uniform(-bound, bound, (inputs, outputs))
        made[f"start_{name}_bias"] = np.zeros(outputs)
    return made


_MAKERS: dict[str, Callable[[np.random.Generator, Problem], Arrays]] = {
    "mixture": _mixture,
    "schools": _schools,
    "logistic": _logistic,
    "hierarchy": _hierarchy,
    "vae": _vae,
}


def data_of(arrays: Arrays) -> Arrays:
    """The data alone."""
    return {name: array for name, array in arrays.items() if not name.startswith("start_")}


def start_of(arrays: Arrays) -> Arrays:
    """The start alone, without the prefix."""
    names = [name for name in arrays if name.startswith("start_")]
    return {name.removeprefix("start_"): arrays[name] for name in names}
