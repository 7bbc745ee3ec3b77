"""Bring a guide's start near the posterior, so that no learning rate has to carry it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppl_vi.data import Batch
from ppl_vi.job import Job
from ppl_vi.objectives import ReparameterizedELBO
from ppl_vi.preparation import structure_of
from ppl_vi.program import Pair
from ppl_vi.randomness import forked_rng
from ppl_vi.registry import GuideStart
from ppl_vi.threads import threads_for

_ITERATIONS = 200
_WORST = 1e30
_PARTICLES = 16


@dataclass(frozen=True)
class Whereabouts:
    """Where a posterior is: a typical value of each site, and a typical width.

    Attributes:
        values: by site, on its own support.
        scale: the geometric mean of the standard deviations, in unconstrained space.
    """

    values: dict[str, Tensor]
    scale: float


def locate(
    job: Job, model: Callable[..., Any], start: GuideStart, batch: Batch
) -> Whereabouts | None:
    """Fit independent Normals in unconstrained space by L-BFGS, on fixed draws.

    With the draws fixed the ELBO is a deterministic function, whose maximum is off by the noise of a
    few draws: good for a start. Unlike the joint mode, it keeps out of spikes without mass. Sites in
    the plates of minibatches are left out. Returns None where the search fails; the prior's typical
    values are then the better start.

    Args:
        job: the model and its data.
        model: the same model with its enumerable sites hidden.
        start: where the search begins.
        batch: the rows to look at.

    Source: Giordano, Ingram and Broderick (2024), for the fixed draws.
    """
    with pyro.get_param_store().scope(), forked_rng(), job.handler(batch):
        guide = AutoNormal(model, init_loc_fn=start.init_loc_fn, create_plates=start.create_plates)
        pair = job.pair(batch)._replace(guide=guide)
        try:
            structure = structure_of(pair)
            with threads_for(structure, pair):
                # Locations first: far from the data the best width is none, and nothing moves.
                if not _search(pair, list(guide.locs.parameters())):
                    return None
                _search(pair, list(guide.parameters()))
            found = guide.median(*batch.args, **batch.kwargs)
        except (ValueError, RuntimeError, ArithmeticError):
            return None
        parameters = pyro.get_param_store().items()
        logs = [value.detach().log().mean() for name, value in parameters if ".scales." in name]
        values = {
            name: value.detach().clone()
            for name, value in found.items()
            if job.data_plates.isdisjoint(structure.sites[name].plates)
        }
        return Whereabouts(values, torch.stack(logs).mean().exp().item())


def _search(pair: Pair, parameters: list[Tensor], draws: int = _PARTICLES) -> bool:
    """Maximise the ELBO on fixed draws over the guide's parameters; whether that went well."""
    objective = ReparameterizedELBO(num_particles=draws)

    def loss_and_gradient(position: np.ndarray) -> tuple[float, np.ndarray]:
        vector_to_parameters(torch.as_tensor(position).to(start), parameters)
        with forked_rng(seed=0), torch.enable_grad():
            loss = objective.differentiable_loss(pair.model, pair.guide, *pair.args, **pair.kwargs)
        gradients = torch.autograd.grad(loss, parameters)
        gradient = parameters_to_vector(gradients).double().cpu().numpy()
        if not np.isfinite(loss.item()) or not np.isfinite(gradient).all():
            return _WORST, np.zeros_like(gradient)  # the line search turns back from here
        return loss.item(), gradient

    start = parameters_to_vector(parameters).detach()
    from scipy.optimize import minimize  # heavy, and not every fit needs it

    found = minimize(
        loss_and_gradient,
        start.double().cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS},
    )
    vector_to_parameters(torch.as_tensor(found.x).to(start), parameters)
    return bool(found.fun < _WORST)


def fit_normals(pair: Pair, normals: AutoNormal, draws: int) -> None:
    """Maximise the ELBO over independent Normals on fixed draws, their locations first.

    Args:
        pair: its guide has ``normals`` as a part.
        normals: what moves.
        draws: how many; from few the widths come out too small.
    """
    structure_of(pair)  # runs the guide, which makes its parameters when first called
    _search(pair, list(normals.locs.parameters()), draws)
    _search(pair, list(normals.parameters()), draws)
