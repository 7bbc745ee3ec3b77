"""Which Gaussian latents of a program can share a joint factor with their own precision.

A Gaussian and a precision are candidates where the one's own precision is a multiple of the other. They
are joined where every term then has the expectation that it has at each value of the precision: given
that, the Gaussian is an ordinary one, so both are computed and compared. Other candidates keep
independent factors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vi.conjugacy.ascent import Ascent
from ppl_vi.conjugacy.conditionals import Conditional, GivenGamma, GivenWishart
from ppl_vi.conjugacy.families import Factor
from ppl_vi.conjugacy.gaussian import Multilinear
from ppl_vi.conjugacy.gaussian_densities import precision_of
from ppl_vi.conjugacy.gaussian_family import GaussianFamily
from ppl_vi.conjugacy.joint_families import JointFamily
from ppl_vi.conjugacy.matrices import PositiveDefinite
from ppl_vi.conjugacy.positive import Positive
from ppl_vi.conjugacy.positive_families import GammaFamily
from ppl_vi.conjugacy.sampled_family import Sampled
from ppl_vi.conjugacy.starts import draw_of_prior
from ppl_vi.conjugacy.values import Law, NotConjugateError
from ppl_vi.conjugacy.wishart_family import WishartFamily
from ppl_vi.errors import ModelError
from ppl_vi.program import Term, innermost, latents_of, weighted_sum


class Candidate(NamedTuple):
    """A Gaussian latent whose own precision is a multiple of another latent.

    Attributes:
        gaussian: the family of its site.
        latent: that of the other site.
        entries: which one of the latent's flattened batch each of its own precisions is a multiple of.
    """

    gaussian: GaussianFamily
    latent: GammaFamily | WishartFamily
    entries: Tensor


def joined(ascent: Ascent, tied: Mapping[str, set[str]]) -> Ascent:
    """With a joint factor for every precision and the Gaussians that can share it.

    Of Gaussians that depend on one another, the one with the most entries is joined.

    Args:
        ascent: with independent factors.
        tied: by site, those that it depends on.

    Raises:
        NotConjugateError: none of the candidates can be joined; it names a site that forbids it.
        ModelError: there are no candidates.
    """
    candidates = _candidates(ascent)
    if not candidates:
        raise ModelError(
            "structured=True asks for a Normal or MultivariateNormal latent whose own precision is a "
            "number times a Gamma or Wishart latent, as in Normal(0.0, (2.0 * tau).rsqrt()), and the "
            "model has none. Use structured=False."
        )
    joint: dict[str, JointFamily] = {}
    refused = []
    for candidate in candidates:
        gaussian, latent = candidate.gaussian, candidate.latent
        before = joint[latent.site].conditionals if latent.site in joint else ()
        taken = {site for family in joint.values() for site in _gaussians(family)}
        if gaussian.site in taken or tied[gaussian.site] & {c.gaussian.site for c in before}:
            continue
        try:
            family = JointFamily(latent, (*before, _conditional(candidate)))
            trial = {**joint, latent.site: family}
            _check(replace(ascent, families=_merged(ascent.families, trial)), trial)
        except NotConjugateError as reason:
            refused.append(
                f"structured=True: '{gaussian.site}' cannot share a factor with its precision "
                f"'{latent.site}': {reason}. Use structured=False."
            )
        else:
            joint = trial
    if not joint:
        raise NotConjugateError(refused[0])
    draws = _drawn_near_one(ascent, joint)
    return replace(ascent, families=_merged(ascent.families, joint), draws=draws)


def _drawn_near_one(ascent: Ascent, joint: Mapping[str, JointFamily]) -> dict[str, Tensor]:
    """The draws, with precisions near one, and their Gaussians drawn given these.

    Draws of a vague prior overflow: 1e-300 of a precision, 1e150 of a mean. Where a joint factor goes
    from its start does not depend on the precision, so any will do.
    """
    near = _somewhere(ascent, joint, None)
    again = {site.name: site.value for site in latents_of(ascent.pair, draw_of_prior, near).sites}
    gaussians = [site for family in joint.values() for site in _gaussians(family)]
    return {**ascent.draws, **near, **{site: again[site] for site in gaussians}}


def _merged(families: Mapping[str, Factor], joint: Mapping[str, JointFamily]) -> dict[str, Factor]:
    """The factors in the order of the program, a joint one where the first of its sites stands."""
    of_site: dict[str, Factor] = dict(families)
    for family in joint.values():
        of_site |= dict.fromkeys((family.latent.site, *_gaussians(family)), family)
    placed: dict[Factor, str] = {}
    for site, factor in of_site.items():
        placed.setdefault(factor, site)
    return {site: factor for factor, site in placed.items()}


def _gaussians(family: JointFamily) -> list[str]:
    return [conditional.gaussian.site for conditional in family.conditionals]


def _candidates(ascent: Ascent) -> list[Candidate]:
    """Those of the program, the Gaussians with the most entries first."""
    laws = ascent.laws(ascent.moments(ascent.around(ascent.draws, 0.5)))
    gaussian = {n: f for n, f in ascent.families.items() if isinstance(f, GaussianFamily)}
    found = []
    for name, latent in ascent.families.items():
        if not isinstance(latent, GammaFamily | WishartFamily):
            continue
        own = latent.moments(latent.starts(ascent.draws, 0.5))
        # The logarithm of a multiple of one entry moves as that of the entry does.
        numbers = torch.arange(own[0].numel(), device=own[0].device, dtype=torch.float64)
        before, after = (
            _precisions(ascent, gaussian, {**laws, name: latent.law((log, own[1]))})
            for log in (0 * numbers.reshape(own[0].shape), numbers.reshape(own[0].shape))
        )
        for site, law in before.items():
            if law.divided((name,)) is not None:
                entries = _log(after[site]) - _log(law)
                if isinstance(law, PositiveDefinite) and isinstance(latent, GammaFamily):
                    entries = entries.unsqueeze(-1) / law.mean.shape[-1]
                found.append(Candidate(gaussian[site], latent, entries.round().long()))
    return sorted(found, key=lambda candidate: -candidate.gaussian.shape.numel())


def _precisions(
    ascent: Ascent, of: Collection[str], laws: Mapping[str, Law]
) -> dict[str, Positive | PositiveDefinite]:
    """The law of the own precision of Gaussian sites."""
    found = {}

    def look(name: str, distribution: Any, value: Any) -> Tensor:
        if name in of:
            found[name] = precision_of(innermost(distribution))
        return torch.zeros(())

    # Each of those that have draws for a law at one of them, so that what is looked up is itself.
    own = {site: law for site, law in laws.items() if not isinstance(law, Sampled)}
    ascent.terms_of(own, density=look)
    return found


def _log(precision: Positive | PositiveDefinite) -> Tensor:
    return precision.log if isinstance(precision, Positive) else precision.log_determinant


def _conditional(candidate: Candidate) -> Conditional:
    """The Gaussian given the latent.

    Raises:
        NotConjugateError: entries that depend on each other have several precisions.
    """
    gaussian, latent, entries = candidate
    if isinstance(latent, WishartFamily):
        last = len(gaussian.shape) - 1
        several = any(dim != last for dim in gaussian.coupled)
        vectors = replace(gaussian, coupled=(last,))
        made: Conditional = GivenWishart(vectors, latent, entries.expand(gaussian.shape[:-1]))
    else:
        packed = gaussian.packed(entries.expand(gaussian.shape))
        several = bool((packed != packed[..., :1]).any())
        made = GivenGamma(gaussian, latent, packed[..., 0])
    if several:
        raise NotConjugateError("entries that depend on each other have several precisions")
    return made


def _check(ascent: Ascent, joint: Mapping[str, JointFamily]) -> None:
    """Raise NotConjugateError where a site has another expectation than at a given precision."""
    generator = torch.Generator().manual_seed(0)
    state = ascent.around({**ascent.draws, **_somewhere(ascent, joint, generator)}, 0.5)
    carried = ascent.laws(ascent.moments(state))
    given = dict(carried)
    for name, factor in ascent.families.items():
        if isinstance(factor, JointFamily):
            given |= factor.laws_at_mean(state[name])
    noisy = [site for family in joint.values() for site in _gaussians(family)]
    expected = _of_noise(ascent, given, noisy)
    for site, found in _of_noise(ascent, carried, noisy).items():
        gap, size = (found - expected[site]).abs(), found.abs() + expected[site].abs()
        if (gap > torch.finfo(gap.dtype).eps ** 0.5 * size).any():
            raise NotConjugateError(f"site '{site}' needs the precision in another form")


def _somewhere(
    ascent: Ascent, joint: Mapping[str, JointFamily], generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Values of the precisions near one, whose entries are far from one another."""
    found = {}
    for site, family in joint.items():
        draw = ascent.draws[site]
        matrices = isinstance(family.latent, WishartFamily)
        shape = draw.shape[:-1] if matrices else draw.shape
        value = 0.5 + torch.rand(shape, generator=generator)
        if matrices:
            outer = value.unsqueeze(-1) * value.unsqueeze(-2)
            value = value.diag_embed() + outer / shape[-1]
        found[site] = value.to(draw)
    return found


def _of_noise(ascent: Ascent, laws: Mapping[str, Law], noisy: Sequence[str]) -> dict[str, Tensor]:
    """How each entry of each term changes when the noises of these sites grow."""
    factor = torch.ones((), requires_grad=True)
    grown = dict(laws)
    for site in noisy:
        law = laws[site]
        if isinstance(law, Multilinear):
            grown[site] = Multilinear({s: p * factor if s else p for s, p in law.parts.items()})
    weights: dict[str, Tensor] = {}

    def weigh(term: Term) -> Tensor:
        weights[term.name] = torch.ones_like(term.log_prob, requires_grad=True)
        return weights[term.name]

    total = weighted_sum(ascent.terms_of(grown), weigh)
    (slope,) = torch.autograd.grad(total, factor, create_graph=True)
    found = torch.autograd.grad(slope, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, found, strict=True))
