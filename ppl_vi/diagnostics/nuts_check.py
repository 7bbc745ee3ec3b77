"""A short run of NUTS beside a fitted posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import (
    Structure,
    draw_latents,
    enumerable_sites,
    enumerated,
    squeezed,
    with_marginalized,
)
from ppl_vi.questions.holding import LearnedModel, frozen
from ppl_vi.sweeping.guides import marginalized

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("mean", "nuts_mean", "sd", "nuts_sd", "shift", "width", "error")


def compare_with_nuts(job: Job, num_draws: int, progress: bool = True) -> pd.DataFrame:
    """Means and standard deviations of a guide beside those of NUTS, on all rows.

    NUTS starts at a draw of the guide, adapts for as many steps as it then takes, and finite discrete
    latents are summed out. Parameters of the model have their fitted values. To be called inside the
    fitted parameters.

    Args:
        job: the fitted model and guide.
        num_draws: of NUTS, one chain.
        progress: show Pyro's progress bar.

    Returns:
        A row for each number of each continuous latent: the four moments, ``shift`` of the guide's mean
        in NUTS's standard deviations, ``width``, NUTS's standard deviation over the guide's, and
        ``error``, the Monte Carlo standard error of the shift.
    """
    job = marginalized(job)
    pair = job.pair(job.source.whole())
    structure = structure_of(pair)
    with torch.no_grad():
        guide = draw_latents(structure, pair, max(1_000, num_draws))
    nuts = _run(job, structure, guide, num_draws, progress)
    names = [name for name in structure.of_kind("latent") if name in nuts]
    ours, theirs = (
        {n: squeezed(structure, n, draws[n]) for n in draws if n in structure.sites}
        for draws in (guide, _completed(structure, pair, nuts, num_draws))
    )
    relabel = getattr(job.model, "relabel", None)
    if relabel is not None and set(structure.of_kind("latent", "marginalized")) <= theirs.keys():
        ours, theirs = relabel(ours), relabel(theirs)
    return _table(names, ours, theirs)


def _run(
    job: Job, structure: Structure, start: Mapping[str, Tensor], num_draws: int, progress: bool
) -> dict[str, Tensor]:
    """``[draws, *shape]`` by continuous latent."""
    batch = job.source.whole()
    pair = job.pair(batch)
    summed = enumerable_sites(job.model, batch.args, batch.kwargs)
    learned = LearnedModel(job.model, pair)
    model = enumerated(learned, summed) if summed else learned
    names = [n for n in structure.of_kind("latent") if not structure.sites[n].support.is_discrete]
    from pyro.infer.autoguide.initialization import init_to_value

    first = {name: start[name][0] for name in names}
    with frozen(learned.modules), pyro.validation_enabled(False), torch.enable_grad():
        kernel = NUTS(
            model,
            max_plate_nesting=structure.nesting if summed else None,
            init_strategy=init_to_value(values=first),
            ignore_jit_warnings=True,
        )
        chain = MCMC(
            kernel, num_samples=num_draws, warmup_steps=num_draws, disable_progbar=not progress
        )
        chain.run(*batch.args, **batch.kwargs)
        drawn = chain.get_samples()
    sites = structure.sites
    return {n: drawn[n].detach().reshape(-1, *sites[n].shape) for n in names if n in drawn}


def _completed(
    structure: Structure, pair: Any, nuts: dict[str, Tensor], num_draws: int
) -> Mapping[str, Tensor]:
    """With discrete latents that were summed out, where all others are there."""
    if not set(structure.of_kind("latent")) <= nuts.keys():
        return nuts
    return with_marginalized(structure, pair, nuts, num_draws)


def _table(
    names: list[str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> pd.DataFrame:
    import arviz as az  # it takes seconds, and not every fit needs it
    import pandas as pd

    rows, index = [], []
    for name in names:
        own, nuts = (draws[name].detach().cpu().double() for draws in (ours, theirs))
        for place in np.ndindex(*own.shape[1:]):
            one, other = own[:, *place], nuts[:, *place]
            spread, effective = other.std().item(), float(az.ess(other.numpy()[None]))
            shift = (one.mean() - other.mean()).item() / max(spread, 1e-300)
            error = (1 / effective + one.var().item() / max(spread, 1e-300) ** 2 / len(one)) ** 0.5
            width = spread / max(one.std().item(), 1e-300)
            moments = one.mean().item(), other.mean().item(), one.std().item(), spread
            rows.append((*moments, shift, width, error))
            index.append((name, ", ".join(map(str, place))))
    names_of = pd.MultiIndex.from_tuples(index, names=["site", "number"])
    return pd.DataFrame(rows, index=names_of, columns=list(_COLUMNS))
