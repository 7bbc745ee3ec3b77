"""The parameters and buffers of a model and a guide, and where a guide like it can be built."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_vi.checkpoints.format import State
from ppl_vi.compilation.watching import Undo
from ppl_vi.errors import CheckpointError
from ppl_vi.job import Job
from ppl_vi.memory import known_about
from ppl_vi.preparation import structure_of
from ppl_vi.program import draw_latents, inspect
from ppl_vi.randomness import forked_rng
from ppl_vi.sweeping.guides import is_swept


def programs_state(job: Job, values: State = None) -> State:
    """All that the programs have learned; inside the fit's parameter scope.

    Args:
        job: the programs.
        values: where a guide like theirs can be built; by default from a draw of theirs.
    """
    store = pyro.get_param_store()
    bounds = store.get_state()["constraints"]
    return {
        "values": typical_values(job) if values is None else values,
        "parameters": dict(store.named_parameters()),
        "plain": [name for name, own in bounds.items() if own is constraints.real],
        "modules": [_buffers(module) for module in _modules(job)],
        "swept": list(job.guide.tensors()) if is_swept(job.guide) else [],
        "noise": job.guide.noise() if is_swept(job.guide) else {},
    }


@torch.no_grad()
def restore_programs(job: Job, state: State, name: str) -> None:
    """Lay what was learned into programs of the same shapes; inside the fit's parameter scope.

    A guide is built beforehand at ``state["values"]``, which spares it the search for a start.

    Args:
        job: the programs.
        state: as ``programs_state`` gave it.
        name: of the file, for errors.

    Raises:
        CheckpointError: their modules have other buffers; nothing is changed then.
    """
    modules = _modules(job)
    _check_buffers(modules, state["modules"], name)
    store = pyro.get_param_store()
    live = dict(store.named_parameters())
    for parameter, value in state["parameters"].items():
        if parameter in live and value.shape != live[parameter].shape:
            raise CheckpointError(
                f"parameter '{parameter}' has shape {tuple(value.shape)} in {name}, and "
                f"{tuple(live[parameter].shape)} here. Pass the programs that it was written with."
            )
    later = [parameter for parameter in state["parameters"] if parameter not in live]
    _check_later(later, state["plain"], name)
    for module, buffers in zip(modules, state["modules"], strict=True):
        module.load_state_dict({**module.state_dict(), **buffers})
    for parameter, value in state["parameters"].items():
        if parameter in live:
            live[parameter].copy_(value)
        else:
            store[parameter] = value.to(job.device)
    if is_swept(job.guide):
        own = zip(state["swept"], job.guide.tensors(), strict=True)
        job.guide.use_noise(state["noise"])
        job.guide.adopt([tensor.to(live.device) for tensor, live in own])


def _modules(job: Job) -> list[nn.Module]:
    """The model and the guide, where they are modules or methods of one, and others that they call.

    A guide that is fitted by sweeps says itself what it is made of.
    """
    owners = [getattr(program, "__self__", program) for program in (job.model, job.guide)]
    own = [owner for owner in owners if isinstance(owner, nn.Module)]
    within = {id(part) for module in own for part in module.modules()}
    called = [module for module in _called(job) if id(module) not in within]
    parts = {id(part) for module in called for part in module.modules() if part is not module}
    others = [module for module in called if id(module) not in parts]
    return [module for module in (*dict.fromkeys(own), *others) if not is_swept(module)]


def _called(job: Job) -> list[nn.Module]:
    """The modules that the programs call, in order."""
    pair = job.usual_pair()
    known = known_about(pair)
    if ("modules",) not in known:
        found: dict[nn.Module, None] = {}
        hook = register_module_forward_pre_hook(lambda module, _: found.setdefault(module))
        try:
            with job.handler(next(job.source.sequence())), forked_rng(), Undo():
                inspect(pair)
        finally:
            hook.remove()
        known["modules",] = list(found)
    modules: list[nn.Module] = known["modules",]
    return modules


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters())
    return {name: value for name, value in module.state_dict().items() if name not in parameters}


def _check_buffers(modules: list[nn.Module], kept: State, name: str) -> None:
    here, there = (
        [{key: getattr(value, "shape", None) for key, value in own.items()} for own in every]
        for every in (map(_buffers, modules), kept)
    )
    if here != there:
        raise CheckpointError(
            f"{name} is of a fit whose modules have other buffers ({there} in the file, {here} here). "
            f"Pass the model and the guide that it was written with."
        )


def _check_later(names: list[str], plain: list[str], name: str) -> None:
    for parameter in names:
        if parameter not in plain:
            raise CheckpointError(
                f"parameter '{parameter}' of {name} stands in a branch of a program that is not taken "
                f"here at the start, so that its constraint is unknown. Let the program declare all "
                f"its parameters in every call."
            )


def typical_values(job: Job) -> dict[str, Any]:
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
