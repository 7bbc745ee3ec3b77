"""Coordinate ascent: the expected log-joint of a program, and what its gradients say.

Written in the mean parameters of each factor, F = E log p is linear in those of one factor when the
others are held. So the best natural parameters of a factor are the gradient of F in its mean
parameters. With discrete latents summed out of exp F, that gradient carries their probabilities.

Source: Winn and Bishop (2005); Hoffman, Blei, Wang and Paisley (2013), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.densities import expected_log_density
from ppl_vi.conjugacy.families import Factor, Tensors
from ppl_vi.conjugacy.tables import Table, counts_of, tables_of
from ppl_vi.conjugacy.values import Law, NotConjugateError, Uncertain
from ppl_vi.program import Pair, Term, Terms, expected_terms, summed_out, weighted_sum

_MOST_ITERATIONS = 100

State = Mapping[str, Tensors]
"""Tensors of each factor, by site: natural parameters, or mean parameters."""

Group = tuple[str, ...]
Weights = Mapping[Group, Tensor]
"""By group of terms, the weight of each of their entries."""


@dataclass(frozen=True, eq=False)
class Ascent:
    """Coordinate ascent on one program.

    Attributes:
        pair: the model and its arguments.
        families: of the factors of q, each by its first site.
        draws: of the sites, for shapes and for Python code that looks at them.
        enumerated: names of discrete latents.
        nesting: how many plates the model has within each other.
        blocks: sites that are updated together, in order.
        rows: row numbers of subsampled plates, by plate.
    """

    pair: Pair
    families: Mapping[str, Factor]
    draws: Mapping[str, Tensor]
    enumerated: tuple[str, ...]
    nesting: int
    blocks: Sequence[tuple[str, ...]] = ()
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def terms(self, moments: State, leaves: dict[Group, Tensor] | None = None) -> Terms:
        """The expected log-density of each site, given the mean parameters of each factor."""
        return self.terms_of(self.laws(moments), leaves)

    def laws(self, moments: State) -> dict[str, Law]:
        """The law of each site, given the mean parameters of each factor."""
        own = (factor.laws(moments[name]) for name, factor in self.families.items())
        return {site: law for laws in own for site, law in laws.items()}

    def terms_of(
        self,
        laws: Mapping[str, Law],
        leaves: dict[Group, Tensor] | None = None,
        density: Callable[[str, Any, Any], Tensor] | None = None,
    ) -> Terms:
        """The expected log-density of each site, or another function of it, given the sites' laws."""
        own = {site: Uncertain.of(self.draws[site], law) for site, law in laws.items()}
        values = {**self.rows, **own}
        return expected_terms(
            self.pair, values, self.enumerated, self.nesting, density or _density, leaves
        )

    def around(self, values: Mapping[str, Tensor], spread: float) -> dict[str, Tensors]:
        """The natural parameters of factors around values of all sites."""
        return {name: factor.starts(values, spread) for name, factor in self.families.items()}

    def moments(self, state: State) -> dict[str, Tensors]:
        """The mean parameters, as leaves that gradients are taken in."""
        with torch.no_grad():
            found = {name: f.moments(state[name]) for name, f in self.families.items()}
        return {name: tuple(m.requires_grad_() for m in own) for name, own in found.items()}

    def elbo(self, state: State) -> Tensor:
        """The exact bound: F plus the entropies of the factors."""
        with torch.no_grad():
            terms = self.terms(self.moments(state))
            return summed_out(terms, self.enumerated) + self._entropy(state, terms)

    def _entropy(self, state: State, terms: Terms) -> Tensor | float:
        """Of all factors, each as often as its rows count."""
        rows = {term.name: term.multiplicity for term in terms.every}
        return sum(rows[n] * f.entropy(state[n]).sum() for n, f in self.families.items())

    def weights(self, state: State) -> tuple[Tensor, Weights]:
        """The exact bound, and the weights of all entries that depend on discrete latents (E-step).

        A weight is the probability of an entry under the best q of the discrete latents, times its
        scale.
        """
        moments = {n: tuple(m.detach() for m in own) for n, own in self.moments(state).items()}
        expected, terms, weights = self._weighted(moments)
        with torch.no_grad():
            return expected + self._entropy(state, terms), weights

    def best(
        self,
        state: State,
        weights: Weights,
        sites: Collection[str] | None = None,
        rate: Tensor | None = None,
    ) -> dict[str, Tensors]:
        """The natural parameters after an update of every block at these weights (M-step).

        Args:
            state: before.
            weights: of all entries.
            sites: those to update; all by default.
            rate: what part of the way to the optimum to go; all of it by default.
        """
        state = dict(state)
        for block in self.blocks:
            names = [name for name in block if sites is None or name in sites]
            if not names:
                continue
            found = self._best_of(names, self.moments(state), weights)
            if rate is not None:
                found = {
                    n: self.families[n].between(state[n], own, rate) for n, own in found.items()
                }
            state |= found
        return state

    def weights_from(self, state: State, probabilities: Mapping[str, Tensor]) -> Weights:
        """The weights at given probabilities of each enumerated site, laid out as its term is."""
        found = {}
        for term in self.terms(self.moments(state)).every:
            if term.latents:
                own = [probabilities[name] for name in term.latents.values()]
                joint = math.prod(own, start=torch.ones_like(term.log_prob)) * term.scale
                found[term.group] = joint.reshape(term.log_prob.shape)
        return found

    def tables(self, state: State, weights: Weights) -> dict[str, Table]:
        """q of the enumerated sites, each given some of those before it, where q is such a product."""
        with torch.no_grad():
            return tables_of(self.terms(self.moments(state)), weighing(weights))

    def counts(self, state: State, weights: Weights) -> dict[str, Tensor]:
        """How many elements q expects in each state of each enumerated site, ``[states]``."""
        with torch.no_grad():
            return counts_of(self.terms(self.moments(state)), weighing(weights))

    def maximize(self, state: State, weights: Weights, parameters: Sequence[Tensor]) -> None:
        """Move the model's parameters uphill, to where the bound is highest at these factors.

        The weights are held (an M-step), so that the bound cannot fall.

        Args:
            state: of the factors.
            weights: of all entries.
            parameters: unconstrained; they are moved in place.
        """
        moments = {n: tuple(m.detach() for m in own) for n, own in self.moments(state).items()}
        flat = torch.finfo(parameters[0].dtype).eps
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=_MOST_ITERATIONS,
            tolerance_grad=flat**0.75,
            tolerance_change=flat,
            line_search_fn="strong_wolfe",
        )
        scale = 1 + sum(weight.abs().sum().item() for weight in weights.values())

        def loss() -> Tensor:
            objective = -weighted_sum(self.terms(moments), weighing(weights)) / scale
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(objective, parameters), strict=True
            ):
                parameter.grad = gradient
            return objective

        with torch.enable_grad():
            optimizer.step(loss)
        for parameter in parameters:
            parameter.grad = None

    @torch.enable_grad()
    def _weighted(self, moments: State) -> tuple[Tensor, Terms, Weights]:
        """F, its terms, and their weights: the gradient of F in their entries."""
        leaves: dict[Group, Tensor] = {}
        terms = self.terms(moments, leaves)
        expected = summed_out(terms, self.enumerated)
        if not leaves:
            return expected.detach(), terms, {}
        found = torch.autograd.grad(expected, list(leaves.values()), _one_like(expected))
        return expected.detach(), terms, dict(zip(leaves, found, strict=True))

    @torch.enable_grad()
    def _best_of(
        self, block: Sequence[str], moments: State, weights: Weights
    ) -> dict[str, Tensors]:
        """The best natural parameters of factors that need not know of each other."""
        leaves = [leaf for name in block for leaf in moments[name]]
        terms = [term for term in self.terms(moments).every if term.log_prob.requires_grad]
        weigh = weighing(weights)
        # The gradient of the weighted sum, without the sum: no log-density need be computed.
        outer = [weigh(term) for term in terms]
        gradients = iter(torch.autograd.grad([t.log_prob for t in terms], leaves, outer))
        rows = {term.name: term.multiplicity for term in terms}
        with torch.no_grad():
            return {
                name: self.families[name].natural(
                    tuple(m.detach() for m in moments[name]),
                    tuple(next(gradients) / rows[name] for _ in moments[name]),
                )
                for name in block
            }


def _one_like(number: Tensor) -> Tensor:
    return torch.ones((), dtype=number.dtype, device=number.device)


def _density(name: str, distribution: Any, value: Any) -> Tensor:
    try:
        return expected_log_density(distribution, value)
    except NotConjugateError as error:
        raise NotConjugateError(f"site '{name}' is not conjugate: {error}") from error


def weighing(weights: Weights) -> Callable[[Term], Tensor]:
    """The weights of a term's entries: its scale, where it depends on no discrete latent."""

    def weigh(term: Term) -> Tensor:
        shape = term.log_prob.shape
        if term.latents:
            return weights[term.group].reshape(shape)
        return torch.as_tensor(term.scale).to(term.log_prob).expand(shape)

    return weigh
