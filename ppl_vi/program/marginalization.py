"""Sum discrete latents out of the model exactly, group by group.

Sites that share an enumerated value form a group; its factors are contracted to one, by Pyro's
tensor variable elimination (Obermeyer et al. 2019), which handles plates and ``pyro.markov``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ppl_vi.errors import ModelError
from ppl_vi.program.layout import PARTICLES, select_dims
from ppl_vi.program.tracing import sample_sites


class MarginalFactor(NamedTuple):
    """What is left of a group of sites once its discrete latents are summed out.

    Fields are those of a ``Factor``: ``log_prob`` is ``[num_particles, *plates]``, unscaled.
    """

    sites: tuple[str, ...]
    log_prob: Tensor
    scale: Tensor | float
    plates: tuple[str, ...]


def marginal_factors(
    trace: Any, marginalized: Collection[str], num_particles: int
) -> list[MarginalFactor]:
    """The marginal factor of each group of sites that discrete latents tie together.

    Args:
        trace: of the model, with the sites ``marginalized`` enumerated.
        marginalized: their names.
        num_particles: S.
    """
    if not marginalized:
        return []
    sites, symbols = _pack(trace, marginalized)
    return [
        _contract(trace, {name: sites[name] for name in names}, shared, num_particles)
        for names, shared in _groups(sites, symbols)
    ]


def packed_terms(
    trace: Any, marginalized: Collection[str]
) -> tuple[OrderedDict[frozenset[str], list[Any]], set[str]]:
    """All packed factors that enumerated dimensions tie together, by plates, and these dimensions."""
    sites, symbols = _pack(trace, marginalized)
    tied = [name for names, _ in _groups(sites, symbols) for name in names]
    return _terms(trace, {name: sites[name] for name in tied}), symbols


def _pack(trace: Any, marginalized: Collection[str]) -> tuple[dict[str, Any], set[str]]:
    for site in trace.nodes.values():
        if site["type"] == "sample":
            # Pyro packs this one as well, and the row numbers' sites, which have none of their own.
            site["log_prob"] = site.setdefault("unscaled_log_prob", torch.zeros(()))
    trace.pack_tensors()
    sites = sample_sites(trace)
    symbols = {sites[name]["infer"]["_enumerate_symbol"] for name in marginalized}
    dims = {
        dim for site in sites.values() for dim in site["packed"]["unscaled_log_prob"]._pyro_dims
    }
    return sites, symbols & dims  # a support of one value leaves no dimension


def _groups(sites: Mapping[str, Any], symbols: set[str]) -> list[tuple[tuple[str, ...], set[str]]]:
    """Connected components: names of sites, and the enumerated dimensions that tie them."""
    groups: list[tuple[tuple[str, ...], set[str]]] = []
    for name, site in sites.items():
        own = symbols.intersection(site["packed"]["unscaled_log_prob"]._pyro_dims)
        if not own:
            continue
        tied = [group for group in groups if group[1] & own]
        groups = [group for group in groups if not group[1] & own]
        names = tuple(n for group in tied for n in group[0])
        groups.append(((*names, name), own.union(*(group[1] for group in tied))))
    return groups


def _contract(
    trace: Any, sites: Mapping[str, Any], symbols: set[str], num_particles: int
) -> MarginalFactor:
    terms = _terms(trace, sites)
    try:
        ((_, (term,)),) = contract_tensor_tree(terms, set(symbols)).items()
    except NotImplementedError as cause:
        raise ModelError(
            f"sites {_quoted(sites)} are tied by discrete latents in plates that cross, so that no "
            f"exact sum over them is feasible. Draw these latents in the guide, or write one of the "
            f"plates as a loop."
        ) from cause
    every = [frame for site in sites.values() for frame in site["cond_indep_stack"]]
    frames = {frame.name: frame for frame in every if frame.vectorized}
    # The particles' dimension is the leftmost.
    names = sorted(frames, key=lambda name: frames[name].dim)
    symbol_of = {name: trace.plate_to_symbol.get(name) for name in names}
    present = [name for name in names if symbol_of[name] in (*term._pyro_dims,)]
    order = [term._pyro_dims.index(symbol_of[name]) for name in present]
    log_prob = term[...].permute(order)  # a plain tensor, without Pyro's packing marks
    if PARTICLES not in present:
        log_prob = log_prob.expand(num_particles, *log_prob.shape)
    plates = tuple(name for name in present if name != PARTICLES)
    scale = _common_scale(sites, [frames[name] for name in (PARTICLES, *plates)])
    return MarginalFactor(tuple(sites), log_prob, scale, plates)


def _terms(trace: Any, sites: Mapping[str, Any]) -> OrderedDict[frozenset[str], list[Any]]:
    """The packed log-probabilities of the sites by their plates, masked where not enumerated."""
    terms: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for site in sites.values():
        names = (frame.name for frame in site["cond_indep_stack"] if frame.vectorized)
        ordinal = frozenset(trace.plate_to_symbol[name] for name in names)
        log_prob = site["packed"]["unscaled_log_prob"]
        if site["infer"].get("_enumerate_dim") is None:
            log_prob = packed.scale_and_mask(log_prob, mask=site["packed"]["mask"])
        _add_to(terms.setdefault(ordinal, []), log_prob)
    return terms


def _add_to(terms: list[Any], log_prob: Any) -> None:
    """Add a packed factor to one with the same dimensions: sums cost less than contractions."""
    dims = log_prob._pyro_dims
    for number, term in enumerate(terms):
        if sorted(term._pyro_dims) == sorted(dims):
            total = term + log_prob.permute([dims.index(dim) for dim in term._pyro_dims])
            total._pyro_dims = term._pyro_dims
            terms[number] = total
            return
    terms.append(log_prob)


def _common_scale(sites: Mapping[str, Any], plates: Sequence[Any]) -> Tensor | float:
    """The scale outside the log of the sum; it exists only where all sites of the group share it.

    A tensor is laid out like the group's factor, ``[num_particles, *plates]``.
    """
    scale, *others = [site["scale"] for site in sites.values()]
    shared = all(_equal(scale, other) for other in others)
    if shared and isinstance(scale, Tensor) and scale.dim():
        dims = [frame.dim for frame in plates]
        shared = all(size == 1 or i - scale.dim() in dims for i, size in enumerate(scale.shape))
        scale = select_dims(scale, dims, 0, next(iter(sites))) if shared else scale
    if not shared:
        raise ModelError(
            f"sites {_quoted(sites)} are tied by a discrete latent that is summed out, but they have "
            f"different scales (N / batch of a subsampled plate, or poutine.scale). Put the "
            f"discrete latent inside the subsampled plate, or draw it in the guide."
        )
    common: Tensor | float = scale
    return common


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _equal(scale: Any, other: Any) -> bool:
    if not isinstance(scale, Tensor) and not isinstance(other, Tensor):
        return bool(scale == other)
    with _disable_current_modes():  # a capture keeps the answer, as it does that for numbers
        wide = [torch.as_tensor(s, dtype=torch.float64) for s in (scale, other)]
        return scale is other or torch.equal(*wide)
