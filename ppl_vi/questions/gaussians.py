"""The part of a guide that is jointly Gaussian in unconstrained space."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ComposeTransform, ReshapeTransform

from ppl_vi.preparation import dependencies_of
from ppl_vi.program import (
    Dependencies,
    Draw,
    LatentSite,
    Pair,
    Structure,
    draw_plainly,
    expanded_parameter,
    innermost,
    latents_of,
    run_guide,
    squeezed,
)
from ppl_vi.randomness import forked_rng

_MOST_ELEMENTS = 25_000_000
_TRIALS = 8
_GAUSSIAN = (Normal, MultivariateNormal, LowRankMultivariateNormal)
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True)
class JointGaussian:
    """Latents whose unconstrained numbers, laid end to end, are u = location + factor e.

    e ~ Normal(0, I).

    Attributes:
        transforms: by site, from its own numbers ``[..., D_site]`` to its value, ``[..., *plates,
            *event]``.
        supports: by site, of its value.
        sizes: D_site.
        location: ``[D]``.
        factor: ``[D, E]``.
    """

    transforms: Mapping[str, ComposeTransform]
    supports: Mapping[str, Constraint]
    sizes: Mapping[str, int]
    location: Tensor
    factor: Tensor

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``."""
        return self.factor @ self.factor.mT

    def numbers(self, sites: Sequence[str]) -> Tensor:
        """``[D of these sites]``: where their numbers stand."""
        places = torch.arange(len(self.location)).split(list(self.sizes.values()))
        own = dict(zip(self.sizes, places, strict=True))
        return torch.cat([own[name] for name in sites]) if sites else torch.arange(0)

    def of(self, sites: Sequence[str]) -> JointGaussian:
        """The marginal of some of the sites, in this order."""
        at = self.numbers(sites).to(self.location.device)
        transforms = {name: self.transforms[name] for name in sites}
        supports = {name: self.supports[name] for name in sites}
        sizes = {name: self.sizes[name] for name in sites}
        return JointGaussian(transforms, supports, sizes, self.location[at], self.factor[at])

    def distribution(self) -> MultivariateNormal | None:
        """Of the numbers of all sites; None where some of them decide over others."""
        if not 0 < len(self.location) <= self.factor.shape[1]:
            return None
        # Not through the covariance, which has the square of the factor's condition number.
        upper = torch.linalg.qr(self.factor.mT, mode="r").R
        diagonal = upper.diagonal()
        if not (diagonal.abs() > torch.finfo(upper.dtype).eps * upper.abs().amax(0)).all():
            return None
        return MultivariateNormal(self.location, scale_tril=upper.mT * diagonal.sign())

    def given(self, sites: Sequence[str], numbers: Tensor) -> JointGaussian:
        """The conditional of the other sites.

        Of e only the part in the null space of the rows F of these sites stays random:
        e = F⁺ (u - location) + (I - F⁺ F) e'.

        Args:
            sites: those that are known.
            numbers: theirs, ``[D of these sites]``, in this order.
        """
        known, rest = self.of(sites), self.of([n for n in self.sizes if n not in sites])
        basis, upper = torch.linalg.qr(known.factor.mT)
        shift = torch.linalg.solve_triangular(
            upper.mT, (numbers - known.location)[:, None], upper=False
        )
        seen = rest.factor @ basis
        location = rest.location + (seen @ shift)[:, 0]
        return replace(rest, location=location, factor=rest.factor - seen @ basis.mT)

    def independent(self, sites: Sequence[str]) -> bool:
        """Whether the other sites are independent of these, exactly."""
        known, rest = self.of(sites), self.of([n for n in self.sizes if n not in sites])
        return not (rest.factor @ known.factor.mT).any()

    def constrained(self, numbers: Tensor) -> dict[str, Tensor]:
        """``[..., *plates, *event]`` by site, of ``[..., D]``."""
        parts = numbers.split(list(self.sizes.values()), -1)
        return {n: self.transforms[n](part) for n, part in zip(self.sizes, parts, strict=True)}

    def unconstrained(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``[..., D]``, and ``[...]``, the log of |du / dz|, of values by site."""
        numbers, log_volume = [], torch.zeros(())
        for name, transform in self.transforms.items():
            own = transform.inv(values[name])
            log_volume = log_volume - transform.log_abs_det_jacobian(own, values[name])
            numbers.append(own)
        return torch.cat(numbers, -1), log_volume


def find_gaussian(structure: Structure, pair: Pair, sites: Sequence[str]) -> JointGaussian:
    """Those of the sites that are jointly Gaussian before the transforms to their supports.

    The guide is run on noise instead of draws of its Gaussian sites. A latent that no other draw
    reaches and whose unconstrained value is an affine function of all noise is Gaussian, and so are
    several of these together: mean-field and joint Gaussian guides, and chains of linear Gaussian
    draws. One that a draw of another family reaches, a component's number say, is a mixture, however
    affine it is for each value of that draw.

    Args:
        structure: of the pair.
        pair: the model, the guide and their arguments.
        sites: latents that the guide draws.
    """
    alone = replace(structure, guide_particles="loop")
    dependencies = dependencies_of(structure, pair, ())
    with forked_rng(seed=0), pyro.validation_enabled(False), torch.enable_grad():
        program = _Noisy(alone, pair, sites)
        random = [name for name in structure.drawn if not structure.sites[name].fixed]
        mixed = reached_by(dependencies, [n for n in random if n not in program.gaussian])
        asked = [name for name in sites if name not in mixed]
        found = {name: affine for name in asked if (affine := program.affine(name)) is not None}
    empty = program.noise[:0]
    return JointGaussian(
        {name: program.transforms[name] for name in found},
        {name: program.supports[name] for name in found},
        {name: len(location) for name, (location, _) in found.items()},
        torch.cat([empty, *(location for location, _ in found.values())]),
        torch.cat([program.noise[None][:0], *(factor for _, factor in found.values())]),
    )


def reached_by(dependencies: Dependencies, draws: Iterable[str]) -> frozenset[str]:
    """The sites of the guide that some of the draws may reach, themselves left out."""
    return frozenset[str]().union(*(dependencies.draws_after(name) for name in draws))


class _Noisy:
    """A guide as a function of the standard Normal noise of its Gaussian sites."""

    def __init__(self, structure: Structure, pair: Pair, sites: Sequence[str]) -> None:
        self._structure, self._pair = structure, pair
        self._sizes: dict[str, int] = {}
        with torch.no_grad():
            first, second = self._run(self._measured), self._run(draw_plainly)
            one, other = self._latents(first, sites), self._latents(second, sites)
        self.supports = {name: latent.support for name, latent in one.items()}
        self.transforms = {
            name: flat_transform(latent)
            for name, latent in one.items()
            # A support that moves with other latents is none that a fixed transform leads to.
            if _same_support(latent, other[name])
        }
        like = next((v for v in first.values() if v.is_floating_point()), torch.zeros(()))
        self.noise = like.new_zeros(sum(self._sizes.values()))
        noises = torch.randn(_TRIALS, len(self.noise)).to(self.noise)
        trials = [self.noise, *noises, *-noises]  # a bend at 0 shows on one side alone
        with torch.no_grad():
            self._trials = [(noise, self._run(self._from(noise))) for noise in trials]

    @property
    def gaussian(self) -> Collection[str]:
        """The sites whose draws are functions of the noise."""
        return self._sizes.keys()

    def affine(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The latent's unconstrained value without noise and its slope; None where it is not affine."""
        if name not in self.transforms or not len(self.noise):
            return None
        (_, still), *others = [(noise, self._numbers(name, v)) for noise, v in self._trials]
        if not still.isfinite().all() or still.numel() * len(self.noise) > _MOST_ELEMENTS:
            return None

        def value(noise: Tensor) -> Tensor:
            return self._numbers(name, self._run(self._from(noise)))

        slope = torch.autograd.functional.jacobian(value, self.noise)
        size = slope.abs().sum(1) + still.abs() + 1e-30
        error = [((v - still - slope @ noise).abs() / size).max() for noise, v in others]
        fits = max(error) < _TOLERANCE.get(still.dtype, 1e-3) if still.numel() else True
        return (still, slope) if fits and slope.any() else None

    def _run(self, draw: Draw) -> dict[str, Tensor]:
        values = run_guide(self._structure, self._pair, draw, 1).values
        return self._structure.single(values)

    def _numbers(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """``[D_site]`` of a site."""
        numbers: Tensor = self.transforms[name].inv(
            squeezed(self._structure, name, values[name][None])[0]
        )
        return numbers

    def _measured(self, name: str, distribution: Any) -> Tensor:
        """Draw plainly, and note how much noise the site takes."""
        if isinstance(innermost(distribution), _GAUSSIAN):
            self._sizes[name] = distribution.shape().numel()
        return draw_plainly(name, distribution)

    def _from(self, noise: Tensor) -> Draw:
        """Draw Gaussian sites from their part of the noise, and others plainly."""
        parts = dict(zip(self._sizes, noise.split(list(self._sizes.values())), strict=True))

        def draw(name: str, distribution: Any) -> Tensor:
            if name not in parts:
                return draw_plainly(name, distribution)
            own = parts[name].reshape(distribution.shape())
            if isinstance(innermost(distribution), Normal):
                moved: Tensor = expanded_parameter(distribution, "scale") * own
            else:
                factor = expanded_parameter(distribution, "scale_tril")
                moved = (factor @ own[..., None])[..., 0]
            return expanded_parameter(distribution, "loc") + moved

        return draw

    def _latents(self, values: Mapping[str, Tensor], sites: Sequence[str]) -> dict[str, LatentSite]:
        """The sites as the model has them at these values."""
        own = {name: value for name, value in values.items() if name in self._structure.drawn}
        rows = self._structure.row_numbers(values)
        found = latents_of(self._pair, draw_plainly, {**rows, **own}).sites
        asked = [latent for latent in found if latent.name in sites and latent.name in own]
        return {latent.name: latent for latent in asked if not latent.support.is_discrete}


def _same_support(one: LatentSite, other: LatentSite) -> bool:
    first, second = biject_to(one.support), biject_to(other.support)
    return torch.equal(first.inv(one.value), second.inv(one.value))


def flat_transform(latent: LatentSite) -> ComposeTransform:
    """From ``[..., D_site]`` unconstrained numbers to ``[..., *plates, *event]`` on the support."""
    value, transform = latent.value, biject_to(latent.support)
    inner = transform.inv(value).shape
    event = value.shape[value.dim() - latent.event_dim :]
    outer = torch.Size([plate.size for plate in latent.plates]) + event
    parts = [ReshapeTransform(torch.Size([inner.numel()]), inner), transform]
    if value.shape != outer:  # plates that are not neighbours have dimensions between them
        parts.append(ReshapeTransform(value.shape, outer))
    return ComposeTransform(parts)
