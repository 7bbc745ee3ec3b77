"""Run a model on given values, with a log-density of one's own at each site."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.distributions.constraints import Constraint

from ppl_vi.errors import ModelError
from ppl_vi.program.layout import innermost, plate_frames
from ppl_vi.program.marginalization import marginal_factors
from ppl_vi.program.messengers import Draw, DrawSites
from ppl_vi.program.structure import Plate
from ppl_vi.program.tracing import Pair, factor_sites, trace_model

_MANY = 30
"""Discrete latents; tensors have 64 dimensions."""

Density = Callable[[str, Any, Any], Tensor]
"""``density(name, distribution, value)``: ``[*batch]``; one entry stands for many that are equal."""


class LatentSite(NamedTuple):
    """A latent of a model, as one run drew it.

    Attributes:
        name: of the site.
        prior: the class name of its distribution, inside ``.expand()`` and ``.to_event()``.
        value: ``[*batch, *event]``.
        event_dim: how many of its dimensions are the event.
        plates: around it, outermost dimension first.
        enumerable: whether it is discrete, with finite support.
        support: of its prior.
        times: how often it counts, by ``poutine.scale``; scales of its plates are left out.
        mask: which of its elements count at all, by ``poutine.mask``; None for all of them.
    """

    name: str
    prior: str
    value: Tensor
    event_dim: int
    plates: tuple[Plate, ...]
    enumerable: bool
    support: Constraint
    times: Tensor | float
    mask: Tensor | bool | None


class Latents(NamedTuple):
    """What a model leaves to be inferred or learned.

    Attributes:
        sites: its latents, in the order of the program.
        nesting: how many plates it has within each other.
        parameters: names of the parameters that ask for a gradient.
    """

    sites: tuple[LatentSite, ...]
    nesting: int
    parameters: tuple[str, ...]


class Term(NamedTuple):
    """The log-density of one site.

    Attributes:
        name: of the site.
        log_prob: over its plates, and on their left the dimensions of enumerated latents.
        scale: of its plates.
        own_dim: where the site is enumerated itself, the dimension of its values, from the right.
        depth: how many dimensions from the right are those of its plates.
        latents: the enumerated latents that it depends on, by their dimension from the right.
        group: equal for terms whose entries have the same probability under q.
        multiplicity: how many rows each row stands for, N / B of its plates.
    """

    name: str
    log_prob: Tensor
    scale: Tensor | float
    own_dim: int | None
    depth: int
    latents: Mapping[int, str]
    group: tuple[str, ...]
    multiplicity: float


class Terms(NamedTuple):
    """The terms of all sites, and the trace that they come from."""

    every: tuple[Term, ...]
    trace: Any


def latents_of(pair: Pair, draw: Draw, values: Mapping[str, Tensor] | None = None) -> Latents:
    """The latents and the parameters of a model, from one run.

    Args:
        pair: the model and its arguments.
        draw: draws its sites.
        values: of some of them, which are not drawn.
    """
    with warnings.catch_warnings(), DrawSites(draw):
        warnings.filterwarnings("ignore", "Singular sample")  # torch says it of every Wishart draw
        trace = trace_model(pair, values or {})
    sites = factor_sites(trace)
    frames = [frame for site in sites.values() for frame in plate_frames(site)]
    latents = tuple(
        LatentSite(
            name,
            type(innermost(site["fn"])).__name__,
            site["value"].detach(),
            site["fn"].event_dim,
            tuple(Plate(f.name, f.dim, f.size, f.full_size) for f in plate_frames(site)),
            bool(site["fn"].has_enumerate_support),
            site["fn"].support,
            site["scale"] / math.prod((f.full_size or f.size) / f.size for f in plate_frames(site)),
            site["mask"],
        )
        for name, site in sites.items()
        if not site["is_observed"]
    )
    learned = tuple(
        name
        for name, node in trace.nodes.items()
        if node["type"] == "param" and node["value"] is not None and node["value"].requires_grad
    )
    return Latents(latents, -min((frame.dim for frame in frames), default=0), learned)


def expected_terms(
    pair: Pair,
    values: Mapping[str, Tensor],
    enumerated: Collection[str],
    nesting: int,
    density: Density,
    leaves: dict[tuple[str, ...], Tensor] | None = None,
    draws: Mapping[str, Tensor] | None = None,
) -> Terms:
    """Run the model on values, with the densities of a function.

    Args:
        pair: the model and its arguments.
        values: of the latents that are not enumerated.
        enumerated: names of discrete latents.
        nesting: how many plates the model has within each other.
        density: gives the log-density of a site.
        leaves: is filled with the log-densities of one term of each group that depends on enumerated
            latents; the gradient can then be taken in these, and in nothing else.
        draws: ``[S, *shape]`` of other latents, over which the log-density of each site is averaged.

    Raises:
        ModelError: naming the site.
    """

    def run(own: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        with pyro.validation_enabled(False), _few_dimensions(enumerated):
            trace = trace_model(pair, {**values, **own}, enumerated, 1, nesting)
        sites = factor_sites(trace).items()
        return trace, {name: density(name, site["fn"], site["value"]) for name, site in sites}

    trace, densities = _averaged(run, draws) if draws else run({})
    terms = []
    owners: dict[int, str] = {}  # along a Markov chain, dimensions are used again
    for name, site in factor_sites(trace).items():
        log_prob = _over_plates(densities[name], site)
        own_dim = site["infer"].get("_enumerate_dim")
        if own_dim is not None:
            owners[own_dim] = name
            log_prob = _without_masked(log_prob, site["mask"], own_dim)
        latents = {
            d: n for d, n in owners.items() if log_prob.dim() >= -d and log_prob.shape[d] > 1
        }
        group = _group(name, site, latents)
        if leaves is not None and latents:
            log_prob = log_prob.detach()
            if group not in leaves:
                leaves[group] = log_prob.requires_grad_()
        site["unscaled_log_prob"] = log_prob
        masked = scale_and_mask(log_prob, mask=site["mask"])
        depth = max((-frame.dim for frame in plate_frames(site)), default=0)
        rows = math.prod((f.full_size or f.size) / f.size for f in plate_frames(site))
        terms.append(Term(name, masked, site["scale"], own_dim, depth, latents, group, rows))
    return Terms(tuple(terms), trace)


def _averaged(
    run: Callable[[Mapping[str, Tensor]], tuple[Any, dict[str, Tensor]]],
    draws: Mapping[str, Tensor],
) -> tuple[Any, dict[str, Tensor]]:
    """The mean log-densities over draws, each of which the program meets by itself; and a trace."""
    traces = []

    def one(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        trace, densities = run(own)
        for name, site in factor_sites(trace).items():
            for setting in ("mask", "scale"):
                if isinstance(site[setting], Tensor) and is_batchedtensor(site[setting]):
                    raise ModelError(
                        f"site '{name}': its {setting} depends on latents that have no exact "
                        f"update. Write the model without, or fit it with the guide 'normal'."
                    )
        traces.append(trace)
        return densities

    # "same": one subsample for all draws.
    found = torch.vmap(one, randomness="same")(dict(draws))
    # A log-density without any of the draws stands S times on the same memory.
    means = {n: each[0] if each.stride(0) == 0 else each.mean(0) for n, each in found.items()}
    return traces[0], means


def _without_masked(log_prob: Tensor, mask: Any, own_dim: int) -> Tensor:
    """Log-probabilities that sum to one where a latent is masked, so that it adds nothing."""
    if mask is None or mask is True:
        return log_prob
    even = -math.log(log_prob.shape[own_dim])
    return torch.where(torch.as_tensor(mask), log_prob, log_prob.new_tensor(even))


def _group(name: str, site: Any, latents: Mapping[int, str]) -> tuple[str, ...]:
    if site["mask"] is not None and site["infer"].get("_enumerate_dim") is None:
        return (name,)
    return (*sorted(latents.values()), "in", *sorted(frame.name for frame in plate_frames(site)))


@contextmanager
def _few_dimensions(enumerated: Collection[str]) -> Iterator[None]:
    """Say what to do where the discrete latents need more dimensions than tensors have."""
    try:
        yield
    except ModelError as error:
        if "dims" not in str(error) or len(enumerated) < _MANY:
            raise
        raise ModelError(
            f"the model has {len(enumerated)} discrete latents, each of which takes a dimension of its "
            f"own. Write a loop over a chain of them as 'for t in pyro.markov(range(T))', so that they "
            f"share a few."
        ) from error


def summed_out(terms: Terms, enumerated: Collection[str]) -> Tensor:
    """The sum of all terms, the enumerated latents summed out of its exponential."""
    groups = marginal_factors(terms.trace, enumerated, 1)
    grouped = {name for group in groups for name in group.sites}
    own = [(group.log_prob * group.scale).sum() for group in groups]
    own += [(t.log_prob * t.scale).sum() for t in terms.every if t.name not in grouped]
    return _total(own)


def weighted_sum(terms: Terms, weigh: Callable[[Term], Tensor]) -> Tensor:
    """The sum of all terms, each entry with a weight of its own."""
    return _total([(weigh(term) * term.log_prob).sum() for term in terms.every])


def _total(parts: Sequence[Tensor]) -> Tensor:
    total: Tensor = sum(parts[1:], start=parts[0])
    return total


def _over_plates(log_prob: Tensor, site: Any) -> Tensor:
    """One entry for each element of the site's plates."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    depth = max([log_prob.dim(), *(-frame.dim for frame in frames)])
    sizes = [1] * (depth - log_prob.dim()) + list(log_prob.shape)
    log_prob = log_prob.reshape(sizes)
    for frame in frames:
        sizes[frame.dim] = frame.size
    return log_prob.expand(sizes)
