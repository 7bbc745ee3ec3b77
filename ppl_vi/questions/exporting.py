"""A fit as groups of named arrays: draws, likelihoods, data and what is known of the fit."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppl_vi.diagnostics.inference_data import Variable
from ppl_vi.errors import ModelError
from ppl_vi.preparation import structure_of
from ppl_vi.program import (
    Structure,
    completed,
    improper_sites,
    observed_sites,
    observed_values,
    pointwise_log_likelihood,
    predictive_draws,
    prior_draws,
    run,
    squeezed,
)
from ppl_vi.questions.posterior import Drawn, Draws, Groups, Posterior
from ppl_vi.questions.weighing import Held

if TYPE_CHECKING:
    from ppl_vi.job import Job
    from ppl_vi.result import FitResult

Dims = Mapping[str, Sequence[str]]
_UNDRAWN = ("observed_data", "constant_data")
_RESERVED = ("chain", "draw", "step")


def answered(drawn: Drawn, sites: Callable[[Drawn], Draws]) -> Groups:
    """What draws of the posterior tell: all groups that belong to the same draws.

    Args:
        drawn: on some rows.
        sites: the draws as a person wants them.
    """
    structure, pair, values, count = drawn[:4]
    new = predictive_draws(completed(structure), pair, values, count)
    return {
        "posterior": sites(drawn),
        "posterior_predictive": {n: squeezed(structure, n, v) for n, v in new.items()},
        "log_likelihood": pointwise_log_likelihood(structure, pair, values, count),
        "sample_stats": densities(drawn),
    }


def densities(drawn: Drawn) -> Draws:
    """``lp``, log p(x, z), and ``log_q``, log q(z), of each draw, ``[num_draws]``, of new rows alone.

    Discrete latents that the guide leaves out are summed out.
    """
    structure, pair, values, count = drawn[:4]
    total = {"lp": torch.zeros(count), "log_q": torch.zeros(count)}
    with torch.no_grad():
        made = run(structure, pair, Held(structure, values), count, structure.row_numbers(values))
    for factor in made.factors:
        of_rows = not drawn.rows.isdisjoint(factor.plates)
        if not (of_rows or drawn.first):
            continue
        name, sign = ("lp", 1.0) if factor.origin == "model" else ("log_q", -1.0)
        scale = 1.0
        for plate in drawn.rows.intersection(factor.plates):  # each row counts once
            scale *= structure.plates[plate].size / structure.plates[plate].full_size
        mine = drawn.without_repeats(sign * scale * factor.signed, factor.plates)
        total[name] = total[name].to(mine) + mine.reshape(count, -1).sum(1)
    return total


def prior_groups(posterior: Posterior, num_draws: int) -> Groups:
    """Draws of the model alone; nothing where it has improper priors, or fails on its own draws."""
    job = posterior.job
    batch = next(job.source.sequence())
    with job.handler(batch):
        structure, pair = structure_of(job.pair(batch)), job.pair(batch)
        if improper_sites(pair):
            return {}
    observed = set(observed_sites(structure))

    def answer(drawn: Drawn) -> Groups:
        values = {
            name: squeezed(drawn.structure, name, value)
            for name, value in drawn.values.items()
            if name in drawn.structure.sites
        }
        return {
            "prior": {name: value for name, value in values.items() if name not in observed},
            "prior_predictive": {name: values[name] for name in values if name in observed},
        }

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a prior may reach where distributions complain
            return posterior.collect(num_draws, answer, prior_draws)
    except ModelError as error:
        warnings.warn(
            f"to_arviz: prior and prior_predictive are left out, since the model fails on draws from "
            f"its prior: {error}",
            stacklevel=4,
        )
        return {}


def data_groups(posterior: Posterior) -> Groups:
    """``[*plates, *event]`` of observed sites, and the arguments of the model that are not observed."""

    def answer(drawn: Drawn) -> Groups:
        found = observed_values(drawn.structure, drawn.pair)
        return {"observed_data": {name: value.unsqueeze(0) for name, value in found.items()}}

    observed = posterior.collect(1, answer).get("observed_data", {})
    observed = {name: value[0] for name, value in observed.items()}
    constant = {
        name: value
        for name, value in _arguments(posterior.job)
        if not any(_same(value, other) for other in observed.values())
    }
    return {"observed_data": observed, "constant_data": constant}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether an argument is what is observed, perhaps in another shape, or broadcast."""
    if one.numel() == other.numel():
        return one.numel() > 1 and torch.equal(one.flatten(), other.flatten().to(one))
    missing = (1,) * max(0, other.dim() - one.dim())
    for shape in ((*missing, *one.shape), (*one.shape, *missing)):
        fits = all(own in (1, size) for own, size in zip(shape, other.shape, strict=False))
        if len(shape) == other.dim() and fits and one.numel() > 1:
            return torch.equal(one.reshape(shape).expand(other.shape), other.to(one))
    return False


def _arguments(job: Job) -> Iterator[tuple[str, Tensor]]:
    """The numbers that the model is called with, by name."""
    batch = job.source.whole()
    try:
        bound = inspect.signature(job.model).bind(*batch.args, **batch.kwargs).arguments
    except (TypeError, ValueError):  # a builtin, say
        bound = {f"argument_{i}": value for i, value in enumerate(batch.args)} | batch.kwargs
    return _numbers(bound)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Tensor | Real):
            yield name, torch.as_tensor(value)
        elif isinstance(value, Mapping):
            yield from _numbers({f"{name}_{key}": one for key, one in value.items()})
        elif isinstance(value, tuple | list):
            yield from _numbers({f"{name}_{i}": one for i, one in enumerate(value)})


def named(groups: Groups, structure: Structure, rows: str | None, dims: Dims) -> dict[str, Any]:
    """Variables by group and name: plates are dimensions, draws one chain.

    Args:
        groups: tensors by site, ``[num_draws, *plates, *event]``, or without draws for data.
        structure: tells the plates of each site.
        rows: the plate over the rows of the data, if there is one.
        dims: names of the dimensions of some sites.

    Raises:
        ValueError: ``dims`` does not fit a site.
    """
    _check_dims(groups, structure, dims)
    size = structure.plates[rows].full_size if rows else None
    variables: dict[str, Any] = {}
    for group, values in groups.items():
        drawn = group not in _UNDRAWN
        for name, value in values.items():
            shape = value.shape[1:] if drawn else value.shape
            site = structure.sites.get(name) if group != "constant_data" else None
            taken = site is None and (name in structure.plates or name in structure.sites)
            label = f"{name}_values" if taken else name
            plates = () if site is None else site.plates
            if site is None and rows and shape and shape[0] == size:
                plates = (rows,)
            default = (*plates, *(f"{label}_dim_{i}" for i in range(len(shape) - len(plates))))
            own = (_given(dims, label) or default)[: len(shape)]
            array = value.detach().cpu().numpy()
            variable = (
                Variable(("chain", "draw", *own), array[None]) if drawn else Variable(own, array)
            )
            variables.setdefault(group, {})[label] = variable
    return variables


def _given(dims: Dims, name: str) -> tuple[str, ...]:
    """The names that were given to the dimensions of a site; one alone may be a string."""
    given = dims.get(name, ())
    return (given,) if isinstance(given, str) else tuple(given)


def _check_dims(groups: Groups, structure: Structure, dims: Dims) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for group, values in groups.items():
        for name, value in values.items():
            if group == "constant_data" and name in structure.sites:
                continue  # an argument with the name of a site
            shape = tuple(value.shape if group in _UNDRAWN else value.shape[1:])
            shapes[name] = max(shape, shapes.get(name, ()), key=len)
    for name in dims:
        if name not in shapes:
            known = ", ".join(f"'{one}'" for one in shapes)
            raise ValueError(
                f"to_arviz: dims: the model has no site '{name}' (it has {known}). Correct the name."
            )
        own, shape = list(_given(dims, name)), shapes[name]
        plates = structure.sites[name].plates if name in structure.sites else ()
        example = [*plates, *(f"{name}_dim_{i}" for i in range(len(shape) - len(plates)))]
        if len(own) != len(shape):
            raise ValueError(
                f"to_arviz: dims: site '{name}' has shape {shape} and takes {len(shape)} names, but "
                f"{own} has {len(own)}. Name each dimension, as in {example}."
            )
        wrong = [dim for dim in own if dim in _RESERVED or dim in shapes or own.count(dim) > 1]
        if wrong:
            raise ValueError(
                f"to_arviz: dims: site '{name}' of shape {shape} cannot have a dimension {wrong[0]!r}: "
                f"that is a name of draws, of steps, of a site or of another of its dimensions. Give "
                f"each its own name, as in {example}."
            )


def steps(losses: Tensor) -> Variable:
    """The bound at each step, as the objective estimated it."""
    bounds: np.ndarray[Any, Any] = -losses.detach().cpu().numpy()
    return Variable(("step",), bounds)


def attributes_of(result: FitResult) -> dict[str, Any]:
    """What is known of a fit, in words and numbers that a file can hold."""
    objective, guide = result.objective, result.job.guide
    own = type(objective).__module__.startswith("ppl_vi")
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "ppl_vi",
        "inference_library_version": _version("ppl-vi"),
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "guide": getattr(guide, "__name__", type(guide).__name__),
        "objective": repr(objective) if own else type(objective).__name__,
        "estimators": json.dumps(result.estimators),
        "seed": "none" if result.seed is None else result.seed,
        "stop_reason": str(result.stop_reason),
        "num_steps": result.num_steps,
        "fitting_time": result.seconds,
        "elbo": float(result.elbo),
        "elbo_standard_error": result.elbo.standard_error,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
