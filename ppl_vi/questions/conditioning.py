"""The posterior of some sites given values of others."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList
from torch import Tensor

from ppl_vi.compilation import Execution
from ppl_vi.evaluation import estimate_elbo
from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters
from ppl_vi.preparation import structure_of, subsampled_plate
from ppl_vi.program import (
    Pair,
    Structure,
    draw_latents,
    draw_plainly,
    latents_of,
    squeezed_shape,
)
from ppl_vi.questions.checks import check_names, check_value
from ppl_vi.questions.gaussians import find_gaussian
from ppl_vi.questions.gaussians_as_guides import FoundGaussianGuide
from ppl_vi.questions.holding import LearnedModel, frozen
from ppl_vi.questions.weighing import Weighing
from ppl_vi.randomness import forked_rng
from ppl_vi.registry import takes_start
from ppl_vi.stopping.reasons import StopReason
from ppl_vi.sweeping.guides import is_swept

if TYPE_CHECKING:
    from ppl_vi.result import FitResult

_DRAWS_TO_TRY, _FEWEST = 200, 20
"""Of so many draws, the effective ones that a conditional in closed form is to have."""
_BEGINNINGS = 4
"""Draws of the old guide that a new fit is told."""
Values = Mapping[str, Tensor | None]
_MOST_TOGETHER = 200
"""Numbers, up to which a full covariance is the default."""


def condition(
    job: Job, observed: Mapping[str, Any], guide: Any, options: Mapping[str, Any]
) -> FitResult:
    """The posterior of the sites that are left; inside the fitted parameters.

    Args:
        job: the fitted model and guide.
        observed: values by site; None for an observed site that is to be inferred.
        guide: for a new fit; None to choose.
        options: of ``fit``.
    """
    pair = job.pair(job.source.whole())
    with torch.no_grad():
        structure = structure_of(pair)
        values = _checked(job, structure, pair, observed)
        model = _Conditioned(job, structure, pair, values)
        joint = None if guide is not None or options else _closed_form(job, structure, pair, values)
    if joint is not None:
        result = _without_steps(Job(model, joint, job.source, job.data_plates))
        if _holds(result):
            return result
    from ppl_vi.fitting import fit  # the result of a fit asks this

    plate = min(job.data_plates, default=None)
    own = {
        "progress": False,
        "data_plate": plate,
        "shard": None,
    }  # other processes may not ask this
    settings = {**own, **options}
    with frozen(model.modules):
        chosen = _family(job, model, structure, values) if guide is None else guide
        result = fit(model, chosen, job.source, **settings)
    return replace(result, fitted=result.fitted.including(model.modules))


def _checked(job: Job, structure: Structure, pair: Pair, observed: Mapping[str, Any]) -> Values:
    """The values, ``[*shape]`` as the model has them.

    Raises:
        ValueError: a name is none of the model's, a value does not fit its site, or nothing is left.
    """
    latent = structure.of_kind("latent", "marginalized")
    known = (*latent, *structure.of_kind("observed"))
    check_names("conditional", observed, known, "sites of the model")
    drawn = draw_latents(structure, pair, 1)
    supports = {
        site.name: site.support
        for site in latents_of(pair, draw_plainly, structure.single(drawn)).sites
    }
    values: dict[str, Tensor | None] = {}
    for name, value in observed.items():
        if (value is None) == (name in latent):
            raise ValueError(
                f"conditional: site '{name}' is {'latent' if value is None else 'data'} already. Give "
                f"a latent the value that it is to have, and None to a site of the data that is to be "
                f"inferred; other data take a fit of their own."
            )
        site = structure.sites[name]
        if value is not None and not job.data_plates.isdisjoint(site.plates):
            raise ValueError(
                f"conditional: site '{name}' stands in the plate of minibatches, whose rows its value "
                f"would not follow. Fit the model on all rows at once, without batch_size."
            )
        values[name] = value
        if value is not None:
            own = torch.as_tensor(value, dtype=site.dtype)
            shape = squeezed_shape(structure, name)
            own = check_value("conditional", name, own, shape, supports[name])
            values[name] = own.reshape(site.shape)
    if not set(latent) - values.keys() and None not in values.values():
        raise ValueError(
            "conditional: every latent of the model has a value, so that nothing is left to infer. "
            "Leave one out."
        )
    return values


class _Conditioned(LearnedModel):
    """The model with values observed.

    It tells a new fit draws of the old one, each near a mode perhaps: searches begin there.
    """

    def __init__(self, job: Job, structure: Structure, pair: Pair, values: Values) -> None:
        super().__init__(pyro.condition(job.model, data=dict(values)), pair)
        left = [
            name
            for name in structure.of_kind("latent")
            if name not in values and not structure.sites[name].support.is_discrete
            if job.data_plates.isdisjoint(structure.sites[name].plates)
        ]
        with forked_rng(seed=0):
            draws = [structure.single(draw_latents(structure, pair, 1)) for _ in range(_BEGINNINGS)]
        self.likely_values = [{name: draw[name] for name in left} for draw in draws]


def _closed_form(job: Job, structure: Structure, pair: Pair, values: Values) -> Any:
    """The guide's own conditional, where it is Gaussian and tells something; else None."""
    sites = structure.of_kind("latent")
    rows = any(not job.data_plates.isdisjoint(structure.sites[name].plates) for name in sites)
    if is_swept(job.guide) or rows or not set(values) < set(sites):
        return None
    if subsampled_plate(structure) is not None:
        return None  # whether it holds is told by all rows
    gaussian = find_gaussian(structure, pair, sites)
    if gaussian.sizes.keys() != set(sites) or gaussian.independent(list(values)):
        return None
    given = {n: v.reshape(squeezed_shape(structure, n)) for n, v in values.items() if v is not None}
    numbers, _ = gaussian.of(list(given)).unconstrained(given)
    return FoundGaussianGuide.of(gaussian.given(list(given), numbers), structure)


def _without_steps(job: Job) -> FitResult:
    """The result of a guide that is as it should be."""
    from ppl_vi.result import FitResult

    started = time.perf_counter()
    with pyro.get_param_store().scope():
        job.check()
        fitted = FittedParameters.capture((job.model, job.guide))
        elbo = estimate_elbo(job.weighted_pairs())
    return FitResult(
        losses=torch.zeros(0),
        bound=elbo,
        elbo=elbo,
        estimators={},
        num_steps=0,
        seconds=time.perf_counter() - started,
        stop_reason=StopReason.CLOSED_FORM,
        job=job,
        start=fitted,
        fitted=fitted,
        execution=Execution("eager", "no steps were taken"),
    )


def _holds(result: FitResult) -> bool:
    """Whether the guide's conditional is near the posterior: far out it may not be."""
    with result.fitted.applied(), forked_rng(seed=0):
        weighing = Weighing(result.job.weighted_pairs, result.job.data_plates)
        (mean, *_) = weighing.means(_DRAWS_TO_TRY).whole
    return mean.effective.min().item() >= _FEWEST


def _family(job: Job, model: Any, structure: Structure, values: Values) -> Any:
    """The family of the guide, for a fit of the sites that are left."""
    if is_swept(job.guide):
        return "cavi"
    if isinstance(job.guide, AutoGuide) and not isinstance(job.guide, (AutoGuideList, AutoDelta)):
        again = same_family(job.guide, model)
        if again is not None:
            return again
    rest = [n for n in structure.of_kind("latent") if n not in values]
    size = sum(structure.sites[name].shape.numel() for name in rest)
    return "multivariate_normal" if size <= _MOST_TOGETHER and not job.data_plates else "normal"


def same_family(guide: AutoGuide, model: Any) -> Any:
    """The guide's family for another model; None where it cannot be built.

    A guide of our own keeps its options as attributes of the same names; of others the class is
    taken, with its defaults.
    """
    family: Any = type(guide)
    _, *parameters = inspect.signature(family).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    options = [p for p in parameters if p.name != "create_plates" and p.kind not in several]
    kept = takes_start(guide) and all(hasattr(guide, option.name) for option in options)
    if kept:
        return type(guide)(
            model, **{option.name: getattr(guide, option.name) for option in options}
        )
    needed = any(option.default is option.empty for option in options)
    return None if needed else family
