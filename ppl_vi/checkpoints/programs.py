"""The parameters and buffers of a model and a guide, and where a guide like it can be built."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vi.checkpoints.format import State
from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import draw_latents
from ppl_vi.randomness import forked_rng
from ppl_vi.sweeping import is_swept


def programs_state(job: Job) -> State:
    """All that the programs have learned; inside the fit's parameter scope."""
    return {
        "values": _typical(job),
        "parameters": dict(pyro.get_param_store().named_parameters()),
        "modules": [None if m is None else _buffers(m) for m in _modules(job)],
        "swept": list(job.guide.tensors()) if is_swept(job.guide) else [],
    }


@torch.no_grad()
def restore_programs(job: Job, state: State) -> None:
    """Lay what was learned into programs of the same shapes; inside the fit's parameter scope.

    A guide is built beforehand at ``state["values"]``, which spares it the search for a start.
    """
    for module, buffers in zip(_modules(job), state["modules"], strict=True):
        if module is not None:
            module.load_state_dict({**module.state_dict(), **buffers})
    store = dict(pyro.get_param_store().named_parameters())
    for name, value in state["parameters"].items():
        store[name].copy_(value)
    if is_swept(job.guide):
        device = [tensor.device for tensor in job.guide.tensors()]
        job.guide.adopt([t.to(d) for t, d in zip(state["swept"], device, strict=True)])


def _modules(job: Job) -> list[torch.nn.Module | None]:
    """The model and the guide, where they are modules or methods of one.

    A guide that is fitted by sweeps says itself what it is made of.
    """
    owners = [getattr(program, "__self__", program) for program in (job.model, job.guide)]
    modules = [owner if isinstance(owner, torch.nn.Module) else None for owner in owners]
    return [None if is_swept(module) else module for module in modules]


def _buffers(module: torch.nn.Module) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters())
    return {name: value for name, value in module.state_dict().items() if name not in parameters}


def _typical(job: Job) -> dict[str, Any]:
    """A draw of the continuous latents outside the plates of minibatches, by site."""
    pair = job.usual_pair()
    structure = structure_of(pair)
    with forked_rng(seed=0), torch.no_grad():
        drawn = structure.single(draw_latents(structure, pair, 1))
    sites = [structure.sites[name] for name in structure.of_kind("latent")]
    return {
        site.name: drawn[site.name]
        for site in sites
        if not site.support.is_discrete and job.data_plates.isdisjoint(site.plates)
    }
