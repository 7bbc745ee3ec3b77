"""One judge for all peers: the ELBO of their parameters, on all rows and with the same draws."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peers.data import Arrays, data_of
from peers.settings import Problem
from peers.torch_models import elbo, log_joint

_IMAGES, _CHUNK = 2_000, 1_000_000


class Judge:
    """Evaluates parameters off the clock.

    Args:
        problem: whose ELBO.
        arrays: its data. Of the images the first 2,000 are looked at.
    """

    def __init__(self, problem: Problem, arrays: Arrays) -> None:
        self._problem = replace(problem, batch=None)
        self._data = {name: torch.from_numpy(a) for name, a in data_of(arrays).items()}
        if problem.model == "vae":
            self._data = {name: tensor[:_IMAGES] for name, tensor in self._data.items()}
        generator = torch.Generator().manual_seed(0)
        size = sum(site.size for site in problem.sites)
        self._noise = torch.randn(problem.draws, size, generator=generator)

    def elbos(self, snapshots: Path) -> dict[int, float]:
        """Per datum, by step.

        Args:
            snapshots: a file with arrays called ``step/name``.
        """
        values: dict[int, dict[str, Tensor]] = defaultdict(dict)
        with np.load(snapshots) as file:
            for key in file:
                step, name = key.split("/")
                values[int(step)][name] = torch.from_numpy(file[key])
        with torch.no_grad():
            return {step: self._elbo(values[step]) for step in sorted(values)}

    def _elbo(self, parameters: dict[str, Tensor]) -> float:
        if self._problem.model == "vae":
            torch.manual_seed(0)
            return float(elbo(self._problem, parameters, self._data)) / _IMAGES
        loc, log_scale = parameters["loc"], parameters["log_scale"]
        chunk = max(1, _CHUNK // (10 * self._problem.num_data))
        bounds = torch.vmap(lambda z: log_joint(self._problem, z, self._data), chunk_size=chunk)(
            loc + log_scale.exp() * self._noise
        )
        entropy = (log_scale + 0.5 * (1 + math.log(2 * math.pi))).sum()
        return float(bounds.double().mean() + entropy) / self._problem.num_data
