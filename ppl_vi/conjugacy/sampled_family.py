"""Factors of latents that are conjugate to nothing here: Gaussian before a transform, on fixed draws.

Their expectations are means over draws that are made once. The bound on these draws is an ordinary
function of the factor, which a line search climbs, and it never falls.

Source: Giordano, Ingram and Broderick (2024), "Black box variational inference with a deterministic
objective"; Iman and Conover (1982), for draws that are uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    Transform,
)

from ppl_vi.conjugacy.families import Factor, Family, Tensors
from ppl_vi.conjugacy.values import Law
from ppl_vi.program import LatentSite

_PAIRS = 16


@dataclass(frozen=True)
class Sampled(Law):
    """A law as draws.

    Attributes:
        draws: ``[S, *shape]``.
    """

    draws: Tensor


@dataclass(frozen=True, eq=False)
class SampledFamily(Family):
    """z = T(m + s ε): m and log s ``[*unconstrained]`` stand for natural parameters, draws for moments.

    Attributes:
        support: of the site's prior.
        transform: T, from the whole space to the support.
        noise: ε, ``[S, *unconstrained]``.
        reason: why the site has no conjugate factor.
    """

    support: Constraint
    transform: Transform
    noise: Tensor
    reason: str

    def moments(self, natural: Tensors) -> Tensors:
        return (self.transform(self._before(natural)),)

    def law(self, moments: Tensors) -> Law:
        return Sampled(moments[0])

    def distribution(self, natural: Tensors) -> Any:
        """Normal, LogNormal, or what the transform makes of a Normal."""
        loc, scale = natural[0], natural[1].exp()
        transform = self.transform
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        if isinstance(transform, ExpTransform):
            return dist.LogNormal(loc, scale).to_event(self.event_dim)
        if isinstance(transform, ComposeTransform) and not transform.parts:
            return dist.Normal(loc, scale).to_event(self.event_dim)
        before = dist.Normal(loc, scale).to_event(self.transform.domain.event_dim)
        return Transformed(before, self.transform, self.support)

    def entropy(self, natural: Tensors) -> Tensor:
        """``[*plates]``: -E log q on the draws, Σ log s + ½ log 2π + ½ ε² + log |dT/dx|."""
        before = self._before(natural)
        stretched: Tensor = self.transform.log_abs_det_jacobian(before, self.transform(before))
        square = self.noise.square().mean(0)  # 1 on balanced draws
        own = natural[1] + 0.5 * (square + math.log(2 * math.pi))
        events = self.transform.domain.event_dim
        own = own.sum(tuple(range(-events, 0))) if events else own
        return own + stretched.mean(0)

    def start(self, value: Tensor, spread: float) -> Tensors:
        loc = self.transform.inv(value)
        return loc, torch.full_like(loc, math.log(spread))

    def _before(self, natural: Tensors) -> Tensor:
        return natural[0] + natural[1].exp() * self.noise


class Transformed(dist.TransformedDistribution):
    """A distribution behind a transform, on a support that torch cannot tell from an affine one."""

    def __init__(self, before: Any, transform: Transform, support: Constraint) -> None:
        super().__init__(before, [transform])
        self._transform, self._support = transform, support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution with other plates."""
        before = self._transform.inverse_shape(torch.Size(batch_shape) + self.event_shape)
        base = self.base_dist.expand(before[: len(before) - self.base_dist.event_dim])
        return Transformed(base, self._transform, self._support)

    @property
    def support(self) -> Constraint:
        """The values that it can draw."""
        return self._support


def _transform_to(support: Constraint) -> Transform:
    """From the whole space to a support; positive numbers are exponentials."""
    if isinstance(support, constraints.independent):
        base = _transform_to(support.base_constraint)
        return IndependentTransform(base, support.reinterpreted_batch_ndims)
    ends = [getattr(support, end, None) for end in ("lower_bound", "upper_bound")]
    if ends[1] is None and ends[0] is not None and bool((torch.as_tensor(ends[0]) == 0).all()):
        return ExpTransform()
    transform: Transform = biject_to(support)
    return transform


def sampled_families(
    sites: Mapping[str, LatentSite], reasons: Mapping[str, str]
) -> dict[str, SampledFamily]:
    """The factors of these sites, whose draws together are uncorrelated as far as they can be.

    Args:
        sites: the latents of a program.
        reasons: why a site has no conjugate factor, by site.
    """
    transforms = {name: _transform_to(sites[name].support) for name in reasons}
    before = {name: transforms[name].inv(sites[name].value) for name in reasons}
    noise = balanced_noise(sum(tensor.numel() for tensor in before.values()))
    own = noise.split([tensor.numel() for tensor in before.values()], -1)
    return {
        name: SampledFamily(
            name,
            sites[name].value.shape,
            sites[name].event_dim,
            sites[name].support,
            transforms[name],
            part.reshape(-1, *before[name].shape).to(before[name]),
            reasons[name],
        )
        for name, part in zip(reasons, own, strict=True)
    }


def redrawn(families: Mapping[str, Factor]) -> dict[str, Factor]:
    """The factors with new draws of the standard Normal and their mirror images."""

    def mirrored(noise: Tensor) -> Tensor:
        half = torch.randn_like(noise[: len(noise) // 2])
        return torch.cat([half, -half])

    return {
        name: replace(own, noise=mirrored(own.noise)) if isinstance(own, SampledFamily) else own
        for name, own in families.items()
    }


def balanced_noise(entries: int) -> Tensor:
    """``[2 * pairs, entries]``: standard Normal draws and their mirror images.

    Each column has the Normal's quantiles, of mean 0 and variance 1 exactly, in the order of columns of
    an orthogonal matrix: as many columns as there are pairs are nearly uncorrelated.

    Args:
        entries: how many columns.
    """
    level = (torch.arange(_PAIRS, dtype=torch.float64) + 0.5) / _PAIRS
    quantiles = torch.special.ndtri(0.5 + 0.5 * level)
    quantiles = quantiles / quantiles.square().mean().sqrt()
    blocks = -(-entries // _PAIRS)
    orthogonal = torch.linalg.qr(torch.randn(blocks, _PAIRS, _PAIRS, dtype=torch.float64)).Q
    columns = orthogonal.movedim(1, 0).reshape(_PAIRS, -1)[:, :entries]
    half = columns.sign() * quantiles[columns.abs().argsort(0).argsort(0)]
    return torch.cat([half, -half])
