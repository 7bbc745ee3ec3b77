"""What tells one fit from another, in words: its model, its guide and its data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from ppl_vi.data.sources import Batch, DataSource
from ppl_vi.errors import CheckpointError
from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import families
from ppl_vi.randomness import forked_rng

Identity = dict[str, str]
"""What is described, and how: ``{"site 'mu'": "latent Normal, shape (2,), float32"}``."""

_ROWS_LOOKED_AT = 64
_MOST_NAMED = 5


def programs_identity(job: Job) -> Identity:
    """The names, shapes and families of model and guide; inside the fit's parameter scope."""
    return {"the guide": _class_of(job.guide), **_sites(job), **_parameters()}


def data_identity(source: DataSource) -> Identity:
    """The number of rows, shapes, types, and the content of some rows, both ends among them."""
    count = source.num_rows
    with forked_rng(seed=0):  # data that draw
        if count is None:
            return _tensors(source.whole(), None)
        places = torch.linspace(0, count - 1, min(count, _ROWS_LOOKED_AT)).round().long()
        batch = source.at(places.to(source.rows_device))
    return {"the number of rows": f"{count:,}", **_tensors(batch, len(places))}


def refuse_others(name: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise where a file is of another fit.

    Args:
        name: of the file.
        there: the identity in the file.
        here: the identity of this fit.

    Raises:
        CheckpointError: they differ; the message says in what.
    """
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if not keys:
        return
    told = [f"{key} ({_both(there.get(key), here.get(key))})" for key in keys[:_MOST_NAMED]]
    more = f", and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    raise CheckpointError(
        f"{name} is of another fit, which differs in {'; '.join(told)}{more}. Pass the model, guide "
        f"and data that it was written with, or the path of another file."
    )


def _both(there: str | None, here: str | None) -> str:
    if there is None:
        return "only here"
    return "only in the file" if here is None else f"{there} in the file, {here} here"


def _class_of(program: Any) -> str:
    owner = getattr(program, "__self__", program)
    return type(owner).__name__ if isinstance(owner, torch.nn.Module) else "a function"


def _sites(job: Job) -> Identity:
    batch = next(job.source.sequence())
    pair, found = job.pair(batch), {}
    with job.handler(batch):
        priors = families(pair)
    for name, site in structure_of(pair).sites.items():
        if site.kind == "auxiliary":  # the guide's own, which may be of another family after a fit
            continue
        # A batch has another number of rows than the next one.
        plates = set(site.plates) & job.data_plates
        shape = "rows of a batch" if plates else f"shape {tuple(site.shape)}"
        kinds = dict.fromkeys((priors.get(name, site.distribution), site.distribution))
        kind = " by ".join(kinds)
        found[f"site '{name}'"] = f"{site.kind} {kind}, {shape}, {_short(site.dtype)}"
    return found


def _parameters() -> Identity:
    return {
        f"parameter '{name}'": f"shape {tuple(tensor.shape)}, {_short(tensor.dtype)}"
        for name, tensor in pyro.get_param_store().named_parameters()
    }


def _tensors(batch: Batch, size: int | None) -> Identity:
    leaves, _ = tree_flatten_with_path((batch.args, batch.kwargs))
    found = {}
    for (_, *path), leaf in leaves:
        name = f"argument {keystr(tuple(path)).strip('[]')}"
        if isinstance(leaf, Tensor):
            rows = leaf.ndim > 0 and len(leaf) == size
            shape = f"rows of {tuple(leaf.shape[1:])}" if rows else f"shape {tuple(leaf.shape)}"
            found[name] = f"{shape}, {_short(leaf.dtype)}, content {digest(leaf)}"
        else:
            found[name] = repr(leaf) if isinstance(leaf, (bool, int, float, str)) else "an object"
    return found


def digest(tensor: Tensor) -> str:
    """Of the content of a tensor."""
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:12]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
