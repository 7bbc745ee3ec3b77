"""Draws from the fitted posterior: of every site, of new observations, and their log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyro
import torch
from pyro.distributions import Unit
from torch import Tensor

from ppl_vi.program.discrete import draw_marginalized, squeezed
from ppl_vi.program.layout import is_improper
from ppl_vi.program.messengers import Draw, unobserved
from ppl_vi.program.particles import into_particle_dim
from ppl_vi.program.run import run_guide, run_model
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair, draw_plainly, sample_sites, trace_model
from ppl_vi.randomness import forked_rng

Draws = dict[str, Tensor]
"""``[num_draws, *shape]`` by site, with the site's shape in a single run."""


def draw_latents(
    structure: Structure, pair: Pair, num_draws: int, draw: Draw = draw_plainly
) -> Draws:
    """Draw all latents: from the guide, and those it leaves out from their exact conditional."""
    with torch.no_grad(), pyro.validation_enabled(False):
        values = run_guide(structure, pair, draw, num_draws).values
    return with_marginalized(structure, pair, values, num_draws)


def with_marginalized(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """Draws of the guide, and those that it leaves out drawn from their exact conditional."""
    if not structure.marginalized:
        return dict(values)
    with torch.no_grad(), pyro.validation_enabled(False):
        return {**values, **draw_marginalized(structure, pair, values, num_draws)}


def completed(structure: Structure) -> Structure:
    """The structure of the program whose discrete latents are drawn as well, none summed out."""
    sites = {
        name: replace(site, kind="latent") if site.kind == "marginalized" else site
        for name, site in structure.sites.items()
    }
    return replace(structure, sites=sites)


def deterministic_values(
    structure: Structure, pair: Pair, draws: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """The values of ``pyro.deterministic`` sites at draws of all latents."""
    names = structure.of_kind("deterministic")
    if not names:
        return {}
    return _model_values(completed(structure), pair, draws, num_draws, names)


def predictive_draws(
    structure: Structure,
    pair: Pair,
    draws: Mapping[str, Tensor],
    num_draws: int,
    names: Sequence[str] | None = None,
) -> Draws:
    """New observations at draws of latents; latents without a draw come from the model.

    Args:
        structure: of the programs.
        pair: the model and the guide with their arguments.
        draws: ``[num_draws, *shape]`` by site, and row numbers by plate.
        num_draws: how many.
        names: the sites wanted; None for those that are observed.
    """
    wanted = observed_sites(structure) if names is None else names
    unconditioned = pair._replace(model=unobserved(pair.model))
    return _model_values(structure, unconditioned, draws, num_draws, wanted)


def prior_draws(
    structure: Structure, pair: Pair, num_draws: int, given: Mapping[str, Tensor]
) -> Draws:
    """Draws of all sites of the model, observed ones too, from the model alone.

    Args:
        structure: of the programs.
        pair: the model and the guide with their arguments.
        num_draws: how many.
        given: values of some latents, ``[num_draws, *shape]``.
    """
    names = [
        *structure.of_kind("latent", "marginalized", "deterministic"),
        *observed_sites(structure),
    ]
    unconditioned = pair._replace(model=unobserved(pair.model))
    return {
        **given,
        **_model_values(completed(structure), unconditioned, given, num_draws, names),
    }


def improper_sites(pair: Pair) -> list[str]:
    """The latents of the model that nobody can draw from their prior."""
    with torch.no_grad(), forked_rng(), pyro.validation_enabled(False):
        sites = sample_sites(trace_model(pair, {}))
    return [n for n, site in sites.items() if not site["is_observed"] and is_improper(site["fn"])]


def observed_values(structure: Structure, pair: Pair) -> Draws:
    """The observed values, ``[*plates, *event]`` by site."""
    with torch.no_grad(), forked_rng(), pyro.validation_enabled(False):
        sites = sample_sites(trace_model(pair, {}))
    values = {}
    for name in observed_sites(structure):
        shape = structure.sites[name].shape
        value = sites[name]["value"].expand(shape).reshape(1, *shape)
        values[name] = squeezed(structure, name, value)[0]
    return values


def observed_sites(structure: Structure) -> list[str]:
    """The observed sites that have a value: all but ``pyro.factor``."""
    observed = structure.of_kind("observed")
    return [name for name in observed if structure.sites[name].distribution != Unit.__name__]


def _model_values(
    structure: Structure,
    pair: Pair,
    draws: Mapping[str, Tensor],
    num_draws: int,
    names: Sequence[str],
) -> Draws:
    """Run the model on all draws together, or on each by itself, and collect values of named sites.

    A value that the program computes (``pyro.deterministic``) has no density, so that nobody has seen
    whether it comes out right on all draws together.
    """
    known = [name for name in names if name in structure.sites]
    alone = set(names).difference(known) | set(structure.of_kind("deterministic"))
    if structure.model_particles == "plate":
        together = [name for name in names if name not in alone]
        found = _values_together(structure, pair, draws, num_draws, together) if together else {}
        return found | _values_alone(
            structure,
            pair,
            {**draws, **found},
            num_draws,
            [name for name in names if name in alone],
        )
    return _values_alone(structure, pair, draws, num_draws, names)


def _values_together(
    structure: Structure,
    pair: Pair,
    draws: Mapping[str, Tensor],
    num_draws: int,
    names: Sequence[str],
) -> Draws:
    nesting, values = structure.nesting, dict(draws)
    for name in structure.sites.keys() & draws.keys():
        values[name] = into_particle_dim(draws[name], nesting, structure.sites[name].event_dim)
    with torch.no_grad(), pyro.validation_enabled(False):
        sites = sample_sites(trace_model(pair, values, (), num_draws, nesting))
    return {
        name: sites[name]["value"].reshape(num_draws, *structure.sites[name].shape)
        for name in names
    }


def _values_alone(
    structure: Structure,
    pair: Pair,
    draws: Mapping[str, Tensor],
    num_draws: int,
    names: Sequence[str],
) -> Draws:
    whole = {name: value for name, value in draws.items() if name not in structure.sites}
    collected: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad(), pyro.validation_enabled(False):
        for k in range(num_draws if names else 0):
            single = {n: v[k] for n, v in draws.items() if n in structure.sites}
            sites = sample_sites(trace_model(pair, {**whole, **single}))
            for name in names:
                collected[name].append(sites[name]["value"])
    return {name: torch.stack(values) for name, values in collected.items()}


def pointwise_log_likelihood(
    structure: Structure, pair: Pair, draws: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """``[num_draws, *plates]`` by observed site: log p(observation | draw), not scaled.

    Where one observed site alone depends on discrete latents that the guide leaves out, these are
    summed out; elsewhere they are given, as drawn.
    """
    with torch.no_grad(), pyro.validation_enabled(False):
        observed = observed_sites(structure)
        found = {}
        for factor in run_model(structure, pair, draws, num_draws):
            others = [name for name in factor.sites if structure.sites[name].kind != "marginalized"]
            if len(others) != 1 or others[0] not in observed:
                continue
            plates = structure.sites[others[0]].plates
            # A latent left of a plate ties its elements: there is no likelihood of each alone.
            if all(p in factor.plates or structure.plates[p].size == 1 for p in plates):
                sizes = [structure.plates[p].size for p in plates]
                found[others[0]] = factor.log_prob.reshape(num_draws, *sizes)
        if len(found) < len(observed):
            for factor in run_model(completed(structure), pair, draws, num_draws):
                if factor.sites[0] in observed:
                    found.setdefault(factor.sites[0], factor.log_prob)
    return {name: found[name] for name in observed}
