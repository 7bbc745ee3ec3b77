"""Traces of a batch of particles, run in a plate, under ``torch.vmap`` or one by one.

However the particles ran, the trace looks as if they had run in an outermost plate: each site has its
``unscaled_log_prob``, a guide's site its ``value``, with the particles in their own dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppl_vi.program.layout import PARTICLES, unmasked
from ppl_vi.program.messengers import Draw
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import (
    Pair,
    factor_sites,
    subsampled_rows,
    trace_guide,
    trace_model,
)

_BY_PARTICLE = ("unscaled_log_prob", "log_q", "mask", "scale")
"""The entries of a traced site that a latent may change."""


def guide_particles(
    structure: Structure,
    pair: Pair,
    draw: Draw,
    num_particles: int,
    rows: Mapping[str, Tensor] | None = None,
) -> Any:
    """The guide's trace over a batch of particles, each site drawn by ``draw``.

    ``rows`` are row numbers to reuse in subsampled plates, by plate.
    """
    if structure.guide_particles == "plate":
        trace = trace_guide(pair, draw, num_particles, structure.nesting, rows)
        _score(trace)
        return trace
    first = trace_guide(pair, draw, rows=rows)
    rows = subsampled_rows(first)  # one subsample for all particles, as in a plate
    traces = [first, *(trace_guide(pair, draw, rows=rows) for _ in range(num_particles - 1))]
    scores = [_stacked(same) for same in zip(*map(_score, traces), strict=True)]
    every = [list(factor_sites(trace).values()) for trace in traces]
    for same in zip(*every, strict=True):
        value = torch.stack([site["value"] for site in same])
        event_dim = same[0]["fn"].event_dim
        same[0]["value"] = into_particle_dim(value, structure.nesting, event_dim)
    return _as_if_in_plate(first, scores, structure.nesting)


def model_particles(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_particles: int
) -> Any:
    """The model's trace over a batch of particles, on the guide's ``values``, by site.

    Discrete latents that the guide lacks are enumerated, left of the particles' dimension.
    """
    nesting, marginalized = structure.nesting, structure.marginalized
    drawn = {name: values[name] for name in structure.drawn}
    rows = structure.row_numbers(values)
    if structure.model_particles == "plate":
        placed = {
            n: into_particle_dim(v, nesting, structure.sites[n].event_dim) for n, v in drawn.items()
        }
        trace = trace_model(pair, {**rows, **placed}, marginalized, num_particles, nesting)
        _score(trace)
        return trace
    traces = []

    def score_one(value: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        traces.append(trace_model(pair, {**rows, **value}, marginalized, None, nesting))
        return _score(traces[-1])

    if structure.model_particles == "vmap":
        # "same": one subsample for all particles, as in a plate.
        scores = torch.vmap(lambda one: _tensors(score_one(one)), randomness="same")(drawn)
    else:
        every = []
        for k in range(num_particles):
            every.append(score_one({name: value[k] for name, value in drawn.items()}))
            rows = {**subsampled_rows(traces[0]), **rows}
        scores = [_stacked(same) for same in zip(*every, strict=True)]
    return _as_if_in_plate(traces[0], scores, nesting)


def _score(trace: Any) -> list[dict[str, Any]]:
    """Score every site of the trace; what may differ from particle to particle, by site.

    ``unscaled_log_prob`` is neither scaled nor masked by Pyro's handlers, and ``log_q`` not by a
    masked distribution either: a masked draw is still a draw, whose score counts.
    """
    scores = []
    for site in factor_sites(trace).values():
        distribution = unmasked(site["fn"])
        site["unscaled_log_prob"] = site["fn"].log_prob(site["value"])
        if distribution is not site["fn"]:
            site["log_q"] = distribution.log_prob(site["value"])
        scores.append({name: site[name] for name in _BY_PARTICLE if site.get(name) is not None})
    return scores


def _tensors(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """The scores that are tensors: under ``torch.vmap`` no latent can become a Python number."""
    return [{n: entry for n, entry in s.items() if isinstance(entry, Tensor)} for s in scores]


def _stacked(scores: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The scores of one site in particles that ran one by one, ``[num_particles, ...]``."""
    stacked = {}
    for name in _BY_PARTICLE:
        entries = [score.get(name, True) for score in scores]  # no mask is a mask of True
        if any(isinstance(entry, Tensor) for entry in entries) or len(set(entries)) > 1:
            tensors = [torch.as_tensor(entry) for entry in entries]
            stacked[name] = torch.stack(torch.broadcast_tensors(*tensors))
    return stacked


def _as_if_in_plate(trace: Any, scores: Sequence[Mapping[str, Tensor]], nesting: int) -> Any:
    """The trace with ``[num_particles, ...]`` scores of its sites, in order."""
    for site, score in zip(factor_sites(trace).values(), scores, strict=True):
        count = len(score["unscaled_log_prob"])
        frame = CondIndepStackFrame(PARTICLES, -nesting - 1, count, 0, count)
        site.update({name: into_particle_dim(entry, nesting, 0) for name, entry in score.items()})
        site["cond_indep_stack"] = (frame, *site["cond_indep_stack"])
    return trace


def into_particle_dim(tensor: Tensor, nesting: int, event_dim: int) -> Tensor:
    """Move the leading dimension of ``[num_particles, ...]`` to the left of all plates.

    Dimensions left of that place are enumerated ones; the program leaves a free dimension there.
    """
    plates = min(tensor.dim() - 1 - event_dim, nesting)
    left = tensor.dim() - 1 - event_dim - plates
    if left == 0:
        missing = nesting - plates
        return tensor.reshape(tensor.shape[0], *(1,) * missing, *tensor.shape[1:])
    # The last of the dimensions on the left is the free one, of size 1.
    return tensor.squeeze(left).movedim(0, left - 1)
