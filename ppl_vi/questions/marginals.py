"""The posterior marginal of some sites: in closed form where the guide has it, else by draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import Normal, TransformedDistribution
from pyro.distributions.util import detach
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.errors import GuideError
from ppl_vi.preparation import dependencies_of
from ppl_vi.program import (
    Pair,
    Structure,
    draw_plainly,
    is_real,
    run_guide,
    squeezed_shape,
    unmasked,
)
from ppl_vi.questions.checks import check_names, check_value
from ppl_vi.questions.gaussians import JointGaussian, find_gaussian, reached_by
from ppl_vi.randomness import forked_rng

Draws = dict[str, Tensor]
_DRAWS_FOR_MOMENTS = 10_000


@dataclass(frozen=True, repr=False)
class Marginal:
    """The joint posterior distribution of some sites under the guide, all others integrated out.

    Attributes:
        sites: their names.
        exact: whether density and draws are of the closed form; else draws are of the whole guide, and
            there is no density.
        distributions: the Pyro distribution of each site by itself where it is known, ``[*plates,
            *event]`` as one event.
    """

    sites: tuple[str, ...]
    exact: bool
    distributions: Mapping[str, Any]
    supports: Mapping[str, constraints.Constraint]
    shapes: Mapping[str, torch.Size]
    gaussian: JointGaussian
    draws: Callable[[int], Draws]

    def __repr__(self) -> str:
        known = "in closed form" if self.exact else "by draws"
        return f"Marginal({', '.join(self.sites)}: {known})"

    def sample(self, num_samples: int = 1_000) -> Draws:
        """Independent draws from the joint distribution, ``[num_samples, *plates, *event]`` by site."""
        if not self.exact:
            return self.draws(num_samples)
        size = torch.Size([num_samples])
        with torch.no_grad():
            location, factor = self.gaussian.location, self.gaussian.factor
            noise = torch.randn(num_samples, factor.shape[1]).to(factor)
            drawn = self.gaussian.constrained(location + noise @ factor.mT)
            alone = [name for name in self.sites if name not in drawn]
            drawn |= {name: self.distributions[name].sample(size) for name in alone}
        return {name: drawn[name] for name in self.sites}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """The joint log-density in nats, on the sites' own supports.

        Args:
            values: ``[..., *plates, *event]`` by site, of all sites.

        Returns:
            ``[...]``.

        Raises:
            ValueError: a site has no value, or one of another shape, or outside its support.
            GuideError: the density is not known in closed form.
        """
        together = self.gaussian.distribution()
        if not self.exact or (together is None and self.gaussian.sizes):
            named = ", ".join(f"'{name}'" for name in self.sites)
            raise GuideError(
                f"marginal: the guide has no density of {named} in closed form. Use "
                f"sample(), or fit a guide that has one, such as 'multivariate_normal'."
            )
        values = self._checked(values)
        parts = [
            self.distributions[name].log_prob(values[name])
            for name in self.sites
            if name not in self.gaussian.sizes
        ]
        if together is not None:
            numbers, log_volume = self.gaussian.unconstrained(values)
            parts += [together.log_prob(numbers), log_volume]
        total: Tensor = sum(parts[1:], start=parts[0])
        return total

    def _checked(self, values: Mapping[str, Tensor]) -> Draws:
        check_names("log_prob", values, self.sites, "sites of the marginal")
        for name in self.sites:
            if name not in values:
                raise ValueError(
                    f"log_prob: site '{name}' has no value. Give one to every site of the marginal."
                )
        return {
            name: check_value(
                "log_prob", name, values[name], self.shapes[name], self.supports[name], several=True
            )
            for name in self.sites
        }

    @property
    def mean(self) -> Draws:
        """The mean by site, exact where torch has it; else of 10,000 draws, always the same."""
        found, drawn = {}, self._fixed_draws()
        for name in self.sites:
            try:
                found[name] = self.distributions[name].mean
            except (KeyError, NotImplementedError):
                found[name] = drawn[name].double().mean(0).to(drawn[name].dtype)
        return found

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``, of the numbers of all sites laid end to end.

        Exact where they are jointly Gaussian on the whole real line; else of 10,000 draws.
        """
        if all(name in self.gaussian.sizes and is_real(self.supports[name]) for name in self.sites):
            return self.gaussian.covariance
        drawn = self._fixed_draws()
        numbers = torch.cat(
            [drawn[n].double().reshape(_DRAWS_FOR_MOMENTS, -1) for n in self.sites], 1
        )
        return torch.cov(numbers.mT).reshape(numbers.shape[1], numbers.shape[1])

    def _fixed_draws(self) -> Draws:
        with forked_rng(seed=0):
            return self.sample(_DRAWS_FOR_MOMENTS)


def find_marginal(
    structure: Structure,
    pair: Pair,
    sites: Sequence[str],
    draws: Callable[[int], Draws],
    factors: Mapping[str, Any],
) -> Marginal:
    """The marginal of some sites; inside the fitted parameters.

    Args:
        structure: of the pair.
        pair: the model, the guide and their arguments.
        sites: their names.
        draws: draws all of them from the whole guide.
        factors: marginals of single sites that the guide knows itself.
    """
    with torch.no_grad():
        alone = _drawn_alone(structure, pair, sites)
        gaussian = find_gaussian(structure, pair, sites)
        own = {name: _of_site(gaussian.of([name])) for name in gaussian.sizes}
        # The family that a site was given says more than that it is Gaussian.
        known = {**own, **{name: factors[name] for name in sites if name in factors}, **alone}
        shapes = {name: squeezed_shape(structure, name) for name in sites}
        distributions = {
            name: whole
            for name, one in known.items()
            if one is not None and (whole := _as_one_event(one)).event_shape == shapes[name]
        }
    closed = {*gaussian.sizes, *(distributions.keys() & alone.keys())}
    if len(sites) == 1:
        closed |= distributions.keys()
    supports = {n: one.support for n, one in distributions.items()} | dict(gaussian.supports)
    exact = closed >= set(sites)
    return Marginal(tuple(sites), exact, distributions, supports, shapes, gaussian, draws)


def _drawn_alone(structure: Structure, pair: Pair, sites: Sequence[str]) -> dict[str, Any]:
    """The distributions of sites that no other draw of the guide reaches, and no subsample of rows."""
    dependencies = dependencies_of(structure, pair, ())
    random = [name for name in structure.drawn if not structure.sites[name].fixed]
    alone = [n for n in sites if n in random and n not in reached_by(dependencies, random)]
    found: list[dict[str, Any]] = [{}, {}]
    structure = replace(structure, guide_particles="loop")
    for seen in found:

        def draw(name: str, distribution: Any, seen: dict[str, Any] = seen) -> Tensor:
            seen[name] = copy.deepcopy(detach(unmasked(distribution)))  # parameters may move later
            return draw_plainly(name, distribution)

        with forked_rng(seed=len(found[0])):
            run_guide(structure, pair, draw, 1)
    first, second = found
    return {name: first[name] for name in alone if _same(first[name], second[name])}


def _same(one: Any, other: Any) -> bool:
    with forked_rng(seed=0):
        value = one.sample()
    return torch.equal(one.log_prob(value), other.log_prob(value))


def _of_site(gaussian: JointGaussian) -> Any:
    """The distribution of one site's value, by the name that it has where it is Gaussian."""
    (name, transform), together = next(iter(gaussian.transforms.items())), gaussian.distribution()
    if together is None:
        return None
    value = transform(together.mean)
    if not is_real(gaussian.supports[name]) or value.dim() > 1:
        return TransformedDistribution(together, [transform])
    if value.dim() == 1:
        return together
    return Normal(together.mean[0], gaussian.factor.square().sum().sqrt())


def _as_one_event(distribution: Any) -> Any:
    return distribution.to_event(len(distribution.batch_shape))
