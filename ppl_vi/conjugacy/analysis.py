"""What coordinate ascent needs to know of a program: families, coupled dimensions, blocks.

All of it is read off second derivatives of the log-joint, weighted at random term by term so that the
sum over discrete latents, which ties everything, is left out: where the derivative across two entries
is zero, neither needs the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.ascent import Ascent
from ppl_vi.conjugacy.families import Factor, Tensors, families_known, family_of
from ppl_vi.conjugacy.gaussian_family import GaussianFamily
from ppl_vi.conjugacy.handing_over import left_to_gradients
from ppl_vi.conjugacy.joining import joined
from ppl_vi.conjugacy.sampled_family import sampled_families
from ppl_vi.conjugacy.starts import draw_of_prior
from ppl_vi.conjugacy.values import NotConjugateError
from ppl_vi.errors import ModelError
from ppl_vi.program import (
    Latents,
    LatentSite,
    Pair,
    Term,
    latents_of,
    limited_joint_states,
    weighted_sum,
)

_ZERO = 1e-5


@torch.enable_grad()
def analyse(pair: Pair, structured: bool = False) -> tuple[Ascent, Latents]:
    """How to ascend on this program, and what it leaves to be inferred or learned.

    Args:
        pair: the program.
        structured: whether Gaussians share a factor with their own precision where they can.

    Raises:
        NotConjugateError: naming the site, and the operation that left the algebra.
        ModelError: ``structured``, and the program has no Gaussian of that kind.
    """
    latents = latents_of(pair, draw_of_prior)
    enumerated = [site.name for site in latents.sites if site.enumerable]
    with limited_joint_states(enumerated) if enumerated else nullcontext():
        ascent = _with_families(pair, latents)
        with _told(ascent):
            ascent.elbo(ascent.around(ascent.draws, 0.5))
    families = dict(ascent.families)
    gaussian = {n: f for n, f in families.items() if isinstance(f, GaussianFamily)}
    coupled = _coupled(ascent, list(gaussian))
    families |= {n: replace(f, coupled=coupled[n]) for n, f in gaussian.items()}
    ascent = replace(ascent, families=families)
    if structured:
        ascent = joined(ascent, _tied(ascent))
    return replace(ascent, blocks=_blocks(_tied(ascent), ascent.sampled)), latents


def _with_families(pair: Pair, latents: Latents) -> Ascent:
    """An ascent with a conjugate factor for each latent that can have one, the others sampled.

    Raises:
        NotConjugateError: none can.
        ModelError: a latent can have no factor at all.
    """
    sites = {site.name: site for site in latents.sites if not site.enumerable}
    families, reasons = dict[str, Factor](), dict[str, str]()
    for name, site in sites.items():
        make = family_of(site.prior)
        if make is not None:
            families[name] = make(name, site.value.shape, site.event_dim)
        elif site.support.is_discrete or site.prior == "Delta":
            raise _without_factor(site)
        else:
            reasons[name] = f"{site.prior} is no conjugate prior"
    draws = {name: site.value for name, site in sites.items()}
    enumerated = tuple(site.name for site in latents.sites if site.enumerable)
    ascent = Ascent(pair, families, draws, enumerated, latents.nesting)
    reasons, refused = left_to_gradients(ascent, reasons)
    if reasons and not enumerated and len(reasons) == len(sites):
        strange = [site for name, site in sites.items() if name not in families]
        raise _without_factor(strange[0]) if strange or refused is None else refused.error
    _check_supports(pair, sites, reasons)
    every = {**families, **sampled_families(sites, reasons)}
    return replace(ascent, families={name: every[name] for name in sites})


def _without_factor(site: LatentSite) -> NotConjugateError:
    return NotConjugateError(
        f"site '{site.name}' is not conjugate: there is no factor for a prior {site.prior}. "
        f"Use one of {', '.join(families_known())}, or fit the model with the guide 'normal'."
    )


def _check_supports(pair: Pair, sites: Mapping[str, LatentSite], names: Collection[str]) -> None:
    """Raise ModelError for a site whose support moves with other latents: no transform reaches it."""
    others = latents_of(pair, draw_of_prior).sites if names else ()
    again = {site.name: site.support for site in others}
    for name in names:
        if not _same_ends(sites[name].support, again[name]):
            raise ModelError(
                f"site '{name}': its support depends on other latents, so that it has no factor. "
                f"Write it as a function of a latent with a fixed support."
            )


def _same_ends(one: Any, other: Any) -> bool:
    """Whether two supports of one site have the same ends."""
    while hasattr(one, "base_constraint"):
        one, other = one.base_constraint, other.base_constraint
    ends = ([getattr(c, end, 0.0) for c in (one, other)] for end in ("lower_bound", "upper_bound"))
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in ends)


@contextmanager
def _told(ascent: Ascent) -> Iterator[None]:
    """Say of which latents a program meets many draws at once, where it cannot."""
    try:
        yield
    except ModelError as error:
        if not ascent.sampled or "vmap" not in str(error):
            raise
        names = ", ".join(f"'{name}'" for name in ascent.sampled)
        raise ModelError(
            f"{names} would be left to gradients, for which the program runs on many draws at once "
            f"(torch.vmap): it can, unless it uses their values in a branch, by .item() or in place. "
            f"Write it without, or fit it with the guide 'normal'."
        ) from error


def _weighted(
    ascent: Ascent,
) -> tuple[Callable[[Mapping[str, Tensors]], Tensor], dict[str, Tensors]]:
    """The log-joint as a sum of all its terms with random weights, and where to look at it."""
    state = ascent.around(ascent.draws, 0.5)
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def weigh(term: Term) -> Tensor:
        if term.name not in weights:
            drawn = 0.5 + torch.rand(term.log_prob.shape, generator=generator)
            weights[term.name] = drawn.to(term.log_prob)
        return weights[term.name] * term.scale

    def value(moments: Mapping[str, Tensors]) -> Tensor:
        return weighted_sum(ascent.terms(moments), weigh)

    return value, ascent.moments(state)


def _gradients(value: Tensor, leaves: Any, create_graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def _coupled(ascent: Ascent, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """By Gaussian site, the dimensions along which its entries depend on each other."""
    if not names:
        return {}
    function, moments = _weighted(ascent)
    means = [moments[name][0] for name in names]
    gradients = _gradients(function(moments), means, create_graph=True)
    return {
        name: _coupled_dims(gradient, mean, ascent.draws[name].shape)
        for name, gradient, mean in zip(names, gradients, means, strict=True)
    }


def _coupled_dims(gradient: Tensor, mean: Tensor, shape: torch.Size) -> tuple[int, ...]:
    if not gradient.requires_grad:
        return ()
    found = []
    for dim, size in enumerate(shape):
        index = torch.arange(size, device=mean.device).reshape(-1, *(1,) * (len(shape) - dim - 1))
        # Two entries differ in some bit of their index.
        halves = [(index >> bit) % 2 == 0 for bit in range((size - 1).bit_length())]
        if any(_leaks(gradient, mean, half.expand(shape)) for half in halves):
            found.append(dim)
    return tuple(found)


def _leaks(gradient: Tensor, mean: Tensor, half: Tensor) -> bool:
    """Whether the gradient in one half of the entries changes with those of the other half."""
    half = half.reshape(mean.shape)
    direction = torch.where(half, torch.randn_like(mean), torch.zeros_like(mean))
    product = (gradient * direction).sum()
    across: Any = torch.autograd.grad(product, [mean], retain_graph=True, allow_unused=True)[0]
    if across is None:
        return False
    other = torch.where(half, torch.zeros_like(across), across)
    return bool(other.abs().max() > _ZERO * across.abs().max())


def _tied(ascent: Ascent) -> dict[str, set[str]]:
    """By factor, in the order of the program, those that it depends on."""
    tied: dict[str, set[str]] = {name: set() for name in ascent.families}
    if not tied:
        return tied
    function, moments = _weighted(ascent)
    leaves = [leaf for name in tied for leaf in moments[name]]
    owners = [name for name in tied for _ in moments[name]]
    gradients = _gradients(function(moments), leaves, create_graph=True)
    for name in tied:
        own = [g for g, owner in zip(gradients, owners, strict=True) if owner == name]
        probe = sum((g * torch.randn_like(g)).sum() for g in own)
        if not isinstance(probe, Tensor) or not probe.requires_grad:
            continue
        across = torch.autograd.grad(probe, leaves, retain_graph=True, allow_unused=True)
        for owner, found in zip(owners, across, strict=True):
            if owner != name and found is not None and found.abs().max() > _ZERO:
                tied[name].add(owner)
                tied[owner].add(name)
    return tied


def _blocks(tied: Mapping[str, set[str]], without: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Factors in the order of the program, those together that do not depend on one another."""
    blocks: list[list[str]] = []
    for name, others in tied.items():
        if name in without:
            continue
        free = [block for block in blocks if not others & set(block)]
        if free:
            free[0].append(name)
        else:
            blocks.append([name])
    return tuple(map(tuple, blocks))
