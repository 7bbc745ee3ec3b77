"""Draws from the fitted posterior: of every site, of new observations, and their log-likelihood."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical, Unit
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from ppl_vi.program.layout import plate_frames, select_dims
from ppl_vi.program.marginalization import packed_terms
from ppl_vi.program.particles import model_particles
from ppl_vi.program.run import run_guide, run_model
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair, draw_plainly, sample_sites, trace_model
from ppl_vi.randomness import forked_rng

Draws = dict[str, Tensor]
"""``[num_draws, *shape]`` by site, with the site's shape in a single run."""


def squeezed(structure: Structure, name: str, draws: Tensor) -> Tensor:
    """``[num_draws, *plates, *event]`` of a site's draws, without the dimensions in between."""
    site = structure.sites[name]
    dims = [structure.plates[plate].dim for plate in site.plates]
    return select_dims(draws, [-draws.dim() + site.event_dim, *dims], site.event_dim, name)


def squeezed_shape(structure: Structure, name: str) -> torch.Size:
    """``[*plates, *event]`` of a site, without the dimensions in between."""
    site = structure.sites[name]
    event = site.shape[len(site.shape) - site.event_dim :]
    return torch.Size([structure.plates[plate].size for plate in site.plates]) + event


def draw_latents(structure: Structure, pair: Pair, num_draws: int) -> Draws:
    """Draw all latents: from the guide, and those it leaves out from their exact conditional."""
    with torch.no_grad(), pyro.validation_enabled(False):
        values = run_guide(structure, pair, draw_plainly, num_draws).values
    return with_marginalized(structure, pair, values, num_draws)


def with_marginalized(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """Draws of the guide, and those that it leaves out drawn from their exact conditional."""
    if not structure.marginalized:
        return dict(values)
    with torch.no_grad(), pyro.validation_enabled(False):
        return {**values, **_draw_marginalized(structure, pair, values, num_draws)}


def completed(structure: Structure) -> Structure:
    """The structure of the program whose discrete latents are drawn as well, none summed out."""
    sites = {
        name: replace(site, kind="latent") if site.kind == "marginalized" else site
        for name, site in structure.sites.items()
    }
    return replace(structure, sites=sites)


def _draw_marginalized(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """Draw summed-out sites one after the other, each given those before it, the rest summed out."""
    trace = model_particles(structure, pair, values, num_draws)
    packed_by_plates, symbols = packed_terms(trace, structure.marginalized)
    terms, present = _without_singletons(packed_by_plates)
    drawn = {}
    for name in structure.marginalized:
        site = sample_sites(trace)[name]
        symbol = site["infer"]["_enumerate_symbol"]
        support = _support(site)
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        ordinal = present.intersection(trace.plate_to_symbol[frame.name] for frame in frames)
        if symbol in symbols:
            logits = contract_to_tensor(
                OrderedDict(terms), set(symbols), target_ordinal=ordinal, target_dims={symbol}
            )
            last = logits._pyro_dims.index(symbol)
            labels: Any = Categorical(logits=logits[...].movedim(last, -1)).sample()
            labels._pyro_dims = logits._pyro_dims.replace(symbol, "")
            for key, group in terms.items():
                terms[key] = [
                    packed.gather(term, labels, symbol) if symbol in term._pyro_dims else term
                    for term in group
                ]
            symbols.remove(symbol)
            index = packed.unpack(labels, trace.symbol_to_dim)
        else:  # a support of one value
            index = torch.zeros((), dtype=torch.long)
        dims = [structure.particle_dim, *(frame.dim for frame in plate_frames(site))]
        sizes = [num_draws, *(frame.size for frame in plate_frames(site))]
        index = select_dims(index, dims, 0, name).expand(sizes)
        drawn[name] = support[index].reshape(num_draws, *structure.sites[name].shape)
    return drawn


def _without_singletons(
    packed_by_plates: Mapping[frozenset[str], Sequence[Any]],
) -> tuple[dict[frozenset[str], list[Any]], frozenset[str]]:
    """The terms by plates of more than one element, and all dimensions that are left.

    A plate of one element leaves no dimension in any term, and Pyro cannot contract over it.
    """
    every = [term for group in packed_by_plates.values() for term in group]
    present = frozenset(dim for term in every for dim in term._pyro_dims)
    terms: dict[frozenset[str], list[Any]] = {}
    for plates, group in packed_by_plates.items():
        terms.setdefault(plates & present, []).extend(group)
    return terms, present


def _support(site: Mapping[str, Any]) -> Tensor:
    """The values of an enumerated site, ``[support, *event]``."""
    value, event_dim = site["value"], site["fn"].event_dim
    values: Tensor = value.reshape(-1, *value.shape[value.dim() - event_dim :])
    return values


def deterministic_values(
    structure: Structure, pair: Pair, draws: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """The values of ``pyro.deterministic`` sites at draws of all latents."""
    names = structure.of_kind("deterministic")
    if not names:
        return {}
    return _model_values(completed(structure), pair, draws, num_draws, names)


def predictive_draws(
    structure: Structure, pair: Pair, draws: Mapping[str, Tensor], num_draws: int
) -> Draws:
    """New observations at draws of latents; latents without a draw come from the model."""
    unconditioned = pair._replace(model=poutine.uncondition(pair.model))
    return _model_values(structure, unconditioned, draws, num_draws, _observed(structure))


def observed_values(structure: Structure, pair: Pair) -> Draws:
    """The observed values, ``[*plates, *event]`` by site."""
    with torch.no_grad(), forked_rng(), pyro.validation_enabled(False):
        sites = sample_sites(trace_model(pair, {}))
    values = {}
    for name in _observed(structure):
        shape = structure.sites[name].shape
        value = sites[name]["value"].expand(shape).reshape(1, *shape)
        values[name] = squeezed(structure, name, value)[0]
    return values


def _observed(structure: Structure) -> list[str]:
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
    """Run the model on each draw by itself and collect the values of the named sites."""
    whole = {name: value for name, value in draws.items() if name not in structure.sites}
    collected: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad(), pyro.validation_enabled(False):
        for k in range(num_draws):
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
        observed = _observed(structure)
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
