"""Bring a guide's start near the posterior, so that no learning rate has to carry it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import biject_to
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppl_vi.data.sources import Batch
from ppl_vi.job import Job
from ppl_vi.objectives import ReparameterizedELBO
from ppl_vi.preparation import structure_of
from ppl_vi.program import Pair
from ppl_vi.randomness import forked_rng
from ppl_vi.starts.gaussian_search import search
from ppl_vi.starts.guide_start import GuideStart
from ppl_vi.starts.log_joint import LogJoint
from ppl_vi.starts.whitening import Whitening
from ppl_vi.threads import threads_for

_ITERATIONS = 200
_WORST = 1e30
_PARTICLES = 16
_MOST_JOINTLY = 300
_MOST_ELEMENTS = 20_000_000


@dataclass(frozen=True)
class Whereabouts:
    """Where a posterior is: a typical value of each site, and a typical width.

    Attributes:
        values: by site, on its own support.
        scale: the geometric mean of the standard deviations, in unconstrained space.
        whitening: of the continuous sites outside the plates of minibatches; None without any.
        bound: the ELBO of the Gaussian that was found, on the draws of the search.
    """

    values: dict[str, Tensor]
    scale: float
    whitening: Whitening | None
    bound: float


def locate(
    job: Job,
    model: Callable[..., Any],
    start: GuideStart,
    batch: Batch,
    given: Mapping[str, Tensor],
) -> Whereabouts | None:
    """Fit independent Normals in unconstrained space by L-BFGS on fixed draws, then a full Gaussian.

    With the draws fixed the ELBO is a deterministic function, whose maximum is off by the noise of a
    few draws: good for a start. Unlike the joint mode, it keeps out of spikes without mass. From there
    Newton steps find the covariance, where the latents are not too many. Parameters of the model stay
    at their start. Sites in the plates of minibatches are left out. Returns None where the search
    fails; the prior's typical values are then the better start.

    Args:
        job: the model and its data.
        model: the same model with its enumerable sites hidden.
        start: where the search begins.
        batch: the rows to look at.
        given: values by site that are kept; only the widths around them are then searched for.

    Source: Giordano, Ingram and Broderick (2024), for the fixed draws.
    """
    with pyro.get_param_store().scope(), forked_rng(), job.handler(batch):
        guide = AutoNormal(model, init_loc_fn=start.init_loc_fn, create_plates=start.create_plates)
        pair = job.pair(batch)._replace(guide=guide)
        try:
            structure = structure_of(pair)
            with threads_for(structure, pair):
                known = not structure.sites.keys().isdisjoint(given)
                whitening, bound = _whitening(LogJoint(structure, pair), guide, known)
        except (ValueError, RuntimeError, ArithmeticError):
            return None
        if whitening is None:
            return None
        values, vectors = {}, []
        for name, vector in whitening.by_site(whitening.location).items():
            drawn = structure.sites[f"{name}_unconstrained"]
            transform = biject_to(guide.prototype_trace.nodes[name]["fn"].support)
            if name in given:
                value = given[name].expand(structure.sites[name].shape)
                values[name], vector = value, transform.inv(value).reshape(-1).to(vector)
            else:
                values[name] = transform(vector.to(drawn.dtype).reshape(drawn.shape))
            vectors.append(vector)
        whitening = whitening.moved(torch.cat(vectors))
        scale = whitening.widths().log().mean().exp().item()
        own = tuple(n for n in values if job.data_plates.isdisjoint(structure.sites[n].plates))
        of_own = whitening.of(own) if own else None
        return Whereabouts({n: values[n] for n in own}, scale, of_own, bound)


def _whitening(density: LogJoint, guide: AutoNormal, known: bool) -> tuple[Whitening | None, float]:
    """The best Gaussian that can be afforded, and its ELBO; None where that is nowhere finite."""
    pair, bound = density.pair, 0.0
    # Locations first: far from the data the best width is none, and nothing moves.
    if not known:
        bound = _search(pair, list(guide.locs.parameters()))
    went_well = bound > -_WORST
    few = density.dim <= _MOST_JOINTLY and density.dim * density.elements <= _MOST_ELEMENTS
    if not few or not density.together:
        if went_well and not known:
            bound = _search(pair, list(guide.parameters()))
        return Whitening(density.sizes, *density.start()) if went_well else None, bound
    found = search(density, *density.start())
    if not found.settled and went_well and not known:
        # No Gaussian near: a funnel, for one. Independent Normals may find a better place.
        _search(pair, list(guide.parameters()))
        found = max(found, search(density, *density.start()), key=lambda each: each.elbo)
    whitening = Whitening(density.sizes, *found[:2]) if isfinite(found.elbo) else None
    return whitening, found.elbo


def _search(pair: Pair, parameters: list[Tensor], draws: int = _PARTICLES) -> float:
    """Maximise the ELBO on fixed draws over the guide's parameters; the highest."""
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
    return -float(found.fun)


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
