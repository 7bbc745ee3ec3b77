"""Bring a guide's start near the posterior, so that no learning rate has to carry it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_sample
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
from ppl_vi.whitening import Mode, Whitening

_ITERATIONS = 200
_WORST = 1e30
_PARTICLES = 16
_LOG_OF_NO_MASS = -10.0
_SEEDS = 2**31


@dataclass(frozen=True)
class Whereabouts:
    """Where a posterior is: a typical value of each site, and a typical width.

    Attributes:
        values: by site, on its own support.
        scale: the geometric mean of the standard deviations, in unconstrained space.
        whitening: of the continuous sites outside the plates of minibatches; None without any.
        bound: the ELBO there, on the draws of the search.
    """

    values: dict[str, Tensor]
    scale: float
    whitening: Whitening | None
    bound: float


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
                if not _search(pair, list(guide.locs.parameters())) > -_WORST:
                    return None
                bound = _search(pair, list(guide.parameters()))
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
        whitening = _whitening(guide, tuple(values))
        return Whereabouts(values, torch.stack(logs).mean().exp().item(), whitening, bound)


def find_modes(
    job: Job,
    model: Callable[..., Any],
    create_plates: Callable[..., Any] | None,
    batch: Batch,
    first: Whereabouts,
    num_searches: int,
) -> tuple[Mode, ...]:
    """Where the posterior has mass, as found from several draws of the prior; the heaviest first.

    Places found twice are named once, and those with less than e^-10 of the heaviest one's mass are
    left out. Which modes are found is up to chance: those whose basins the prior rarely meets may
    be missing.

    Args:
        job: the model and its data.
        model: the same model with its enumerable sites hidden.
        create_plates: as of Pyro's autoguides.
        batch: the rows to look at.
        first: what was found from the usual start, which counts as one search.
        num_searches: how many.
    """
    drawn = GuideStart(init_to_sample, create_plates)
    every = [first]
    for seed in torch.randint(_SEEDS, (num_searches - 1,)).tolist():
        with forked_rng(seed=seed):
            found = locate(job, model, drawn, batch)
        every += [found] if found is not None else []
    modes = [Mode(found.whitening, found.bound) for found in every if found.whitening is not None]
    apart: list[Mode] = []
    for mode in sorted(modes, key=lambda mode: -mode.log_mass):
        heavy = not apart or mode.log_mass > apart[0].log_mass + _LOG_OF_NO_MASS
        if heavy and not any(mode.is_at(other) for other in apart):
            apart.append(mode)
    return tuple(apart)


def _whitening(guide: AutoNormal, names: tuple[str, ...]) -> Whitening | None:
    """The Normals of these sites, end to end."""
    if not names:
        return None
    pairs = [guide._get_loc_and_scale(name) for name in names]
    locations, widths = (
        torch.cat([pair[i].detach().reshape(-1) for pair in pairs]) for i in range(2)
    )
    sizes = {name: loc.numel() for name, (loc, _) in zip(names, pairs, strict=True)}
    return Whitening(sizes, locations, widths)


def _search(pair: Pair, parameters: list[Tensor]) -> float:
    """Maximise the ELBO on fixed draws over the guide's parameters; the highest found."""
    objective = ReparameterizedELBO(num_particles=_PARTICLES)

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
    return -float(found.fun)
