"""Leave-one-out cross-validation of an approximate posterior, by ArviZ's Pareto smoothing."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.diagnostics.pareto import FEWEST_DRAWS, smoothed, usable
from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import Structure, pointwise_log_likelihood, with_marginalized
from ppl_vi.questions.checks import check_names
from ppl_vi.questions.singles import on_all_rows, plate_of_singles, singles
from ppl_vi.sweeping.guides import marginalized


def leave_one_out(job: Job, site: str | None, num_draws: int) -> Any:
    """ArviZ's ``ELPDData`` of an observed site; inside the fitted parameters.

    Args:
        job: the fitted model and guide.
        site: the observed site; None where there is but one.
        num_draws: S.

    Raises:
        ValueError: too few draws, no such site, or several to choose from.
        ModelError, GuideError, FloatingPointError: as ``khat`` does.
    """
    check_count("num_draws", num_draws, least=FEWEST_DRAWS)
    job = marginalized(job)
    pair = job.pair(job.source.whole())
    structure, weighing = structure_of(pair), on_all_rows(pair)
    plate = plate_of_singles(weighing)
    weights, likelihoods = [], []
    for each in singles(weighing, num_draws):
        count = len(each.log_w)
        values = with_marginalized(structure, pair, each.values, count)
        found = pointwise_log_likelihood(structure, pair, values, count)
        site = _chosen(site, list(found))
        likelihoods.append(found[site].double().cpu())
        weights.append(_aligned(each.log_w.cpu(), structure, site, plate))
    plates = structure.sites[str(site)].plates
    return _elpd(str(site), plates, torch.cat(weights), torch.cat(likelihoods))


def _chosen(site: str | None, observed: Sequence[str]) -> str:
    if site is None and len(observed) == 1:
        return observed[0]
    if site is None:
        names = ", ".join(f"'{name}'" for name in observed) or "none"
        raise ValueError(f"loo: the model's observed sites are {names}. Name one of them, site=...")
    check_names("loo", [site], observed, "observed sites of the model")
    return site


def _aligned(log_w: Tensor, structure: Structure, site: str, plate: str | None) -> Tensor:
    """``[draws, *plates]`` of the site, with ones for plates without weights of their own."""
    plates = structure.sites[site].plates
    if plate is not None and plate not in plates:
        log_w = log_w.sum(1)
    shape = [structure.plates[name].size if name == plate else 1 for name in plates]
    return log_w.reshape(len(log_w), *shape)


def _elpd(site: str, plates: Sequence[str], log_w: Tensor, log_likelihood: Tensor) -> Any:
    """From ``[S, *plates]`` log-weights of the posterior, and log-likelihoods."""
    without, k = smoothed(log_w - log_likelihood)
    pointwise = (without + log_likelihood).logsumexp(0)
    with_all, _ = smoothed(log_w)
    predictive = (with_all + log_likelihood).logsumexp(0)
    size, good = pointwise.numel(), usable(len(log_w))
    # Where nearly all draws count, what k-hat finds in the tails moves the sum by little.
    uneven = (-(2 * without).logsumexp(0)).exp() < len(log_w) / 2
    poor = int(((k > good) & uneven).sum())
    if poor:
        warnings.warn(
            f"loo: site '{site}': weights are uneven, with k-hat above {good:.2f}, for {poor} of "
            f"{size} observations, whose part of the sum is not to be relied on. Fit a richer guide "
            f"where result.khat() is large too; else these observations are influential: fit again "
            f"without them.",
            stacklevel=4,
        )
    return _as_arviz(
        {
            "elpd": pointwise.sum().item(),
            "se": (size * pointwise.var(correction=0).item()) ** 0.5,
            "p": (predictive.sum() - pointwise.sum()).item(),
            "n_samples": len(log_w),
            "n_data_points": size,
            "warning": poor > 0,
            "elpd_i": _labelled(pointwise, plates, "loo_i"),
            "pareto_k": _labelled(k, plates, "pareto_shape"),
            "scale": "log",
            "good_k": good,
        }
    )


def _labelled(value: Tensor, plates: Sequence[str], name: str) -> Any:
    import xarray as xr  # heavy, and not every fit needs it

    coords = {plate: np.arange(size) for plate, size in zip(plates, value.shape, strict=True)}
    return xr.DataArray(value.numpy(), dims=list(plates), coords=coords, name=name)


def _as_arviz(fields: dict[str, Any]) -> Any:
    """``ELPDData`` of either generation of ArviZ."""
    try:
        from arviz.stats.stats_utils import ELPDData
    except ImportError:  # ArviZ 1.x
        utils = importlib.import_module("arviz_stats.utils")
        kind = getattr(utils, "ELPDDataLOO", utils.ELPDData)
        return kind(kind="loo", approx_posterior=True, **fields)
    names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    return ELPDData(data=list(fields.values()), index=[names.get(n, n) for n in fields])
