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
from typing import Any, cast

import torch
from torch import Tensor

from ppl_vi.conjugacy.climbing import climb
from ppl_vi.conjugacy.densities import expected_log_density
from ppl_vi.conjugacy.families import Factor, Tensors
from ppl_vi.conjugacy.kinds import Kind, kinds_of
from ppl_vi.conjugacy.sampled_family import Sampled, SampledFamily
from ppl_vi.conjugacy.tables import Table, counts_of, tables_of
from ppl_vi.conjugacy.values import Law, NotConjugateError, Uncertain
from ppl_vi.program import Pair, Term, Terms, expected_terms, summed_out, weighted_sum
from ppl_vi.ranks.sums import SumOverParts

_MOST_ITERATIONS = 100
_ITERATIONS_OF_FACTORS = 20

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
        parts: sums what several processes find on their rows; ``None`` for one alone.
        local: names of the factors of rows, which are with the process that has the rows.
    """

    pair: Pair
    families: Mapping[str, Factor]
    draws: Mapping[str, Tensor]
    enumerated: tuple[str, ...]
    nesting: int
    blocks: Sequence[tuple[str, ...]] = ()
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    parts: SumOverParts | None = None
    local: Collection[str] = ()

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
        """The expected log-density of each site, or another function of it, given the sites' laws.

        Sites without a law are at their draws.
        """
        sampled = {site: law.draws for site, law in laws.items() if isinstance(law, Sampled)}
        own = {
            site: Uncertain.of(self.draws[site], law, frozenset((site,)))
            for site, law in laws.items()
            if site not in sampled
        }
        given = {site: draw for site, draw in self.draws.items() if site not in laws}
        values = {**self.rows, **given, **own}
        one = density or _density
        return expected_terms(
            self.pair, values, self.enumerated, self.nesting, one, leaves, sampled
        )

    @property
    def sampled(self) -> dict[str, SampledFamily]:
        """The factors that have no closed form."""
        return {n: f for n, f in self.families.items() if isinstance(f, SampledFamily)}

    def around(self, values: Mapping[str, Tensor], spread: float) -> dict[str, Tensors]:
        """The natural parameters of factors around values of all sites."""
        return {name: factor.starts(values, spread) for name, factor in self.families.items()}

    def moments(self, state: State) -> dict[str, Tensors]:
        """The mean parameters, as leaves that gradients are taken in."""
        with torch.no_grad():
            found = {name: self.families[name].moments(own) for name, own in state.items()}
        return {name: tuple(m.requires_grad_() for m in own) for name, own in found.items()}

    def elbo(self, state: State) -> Tensor:
        """The exact bound: F plus the entropies of the factors."""
        with torch.no_grad():
            terms = self.terms(self.moments(state))
            return summed_out(terms, self.enumerated) + self._entropy(state, terms)

    def _entropy(self, state: State, terms: Terms) -> Tensor | float:
        """Of the factors in a state, each as often as its rows count."""
        rows = {term.name: term.multiplicity for term in terms.every}
        return sum(rows[n] * self.families[n].entropy(own).sum() for n, own in state.items())

    def weights(self, state: State) -> tuple[Tensor, Weights]:
        """The exact bound, and the weights of all entries that depend on discrete latents (E-step).

        A weight is the probability of an entry under the best q of the discrete latents, times its
        scale.
        """
        expected, terms, weights = self._weighted(self._held(state))
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

    def counts(self, state: State, weights: Weights) -> list[tuple[Kind, Tensor]]:
        """How many elements q expects in each state, ``[states]``, of enumerated sites by kind."""
        terms = self.terms(self.moments(state))
        with torch.no_grad():
            own = counts_of(terms, weighing(weights))
        return [
            (kind, torch.stack([own[n] for n in kind.sites]).sum(0)) for kind in kinds_of(terms)
        ]

    def maximize(self, state: State, weights: Weights, parameters: Sequence[Tensor]) -> None:
        """Move the model's parameters uphill, to where the bound is highest at these factors.

        The weights are held (an M-step), so that the bound cannot fall.

        Args:
            state: of the factors.
            weights: of all entries.
            parameters: unconstrained; they are moved in place.
        """
        moments = self._held(state)

        def bound() -> Tensor:
            return weighted_sum(self.terms(moments), weighing(weights))

        climb(bound, parameters, _MOST_ITERATIONS, self.totals)

    def search(self, state: State, weights: Weights) -> dict[str, Tensors]:
        """The factors after those without a closed form have moved uphill at these weights.

        They are moved in units of their own deviations, in which the bound curves alike everywhere.
        """
        sampled = self.sampled
        if not sampled:
            return dict(state)
        moments = self._held(state)
        steps = {n: [torch.zeros_like(t, requires_grad=True) for t in state[n]] for n in sampled}

        def moved() -> dict[str, Tensors]:
            return {
                n: (m + s.exp() * steps[n][0], s + steps[n][1])
                for n, (m, s) in ((n, state[n]) for n in sampled)
            }

        def bound() -> Tensor:
            own = moved()
            terms = self.terms({**moments, **{n: f.moments(own[n]) for n, f in sampled.items()}})
            return weighted_sum(terms, weighing(weights)) + self._entropy(own, terms)

        leaves = [leaf for own in steps.values() for leaf in own]
        climb(bound, leaves, _ITERATIONS_OF_FACTORS, self.totals)
        with torch.no_grad():
            return {**state, **moved()}

    def at(self, state: State, weights: Weights) -> Tensor:
        """The bound at held weights, but for the entropy of the discrete latents."""
        with torch.no_grad():
            terms = self.terms(self._held(state))
            own = weighted_sum(terms, weighing(weights)) + self._entropy(state, terms)
            return self.totals((own,))[0]

    def totals(self, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """What all rows come to, from what the rows at hand do, counted for all."""
        return own if self.parts is None else self.parts.total(own)

    def _held(self, state: State) -> dict[str, Tensors]:
        """The mean parameters, without a gradient."""
        return {n: tuple(m.detach() for m in own) for n, own in self.moments(state).items()}

    @torch.enable_grad()
    def _weighted(self, moments: State) -> tuple[Tensor, Terms, Weights]:
        """F, its terms, and their weights: the gradient of F in their entries."""
        leaves: dict[Group, Tensor] = {}
        terms = self.terms(moments, leaves)
        expected = summed_out(terms, self.enumerated)
        if not leaves:
            return expected.detach(), terms, {}
        found = torch.autograd.grad(expected, list(leaves.values()))
        return expected.detach(), terms, dict(zip(leaves, found, strict=True))

    def _best_of(
        self, block: Sequence[str], moments: State, weights: Weights
    ) -> dict[str, Tensors]:
        """The best natural parameters of factors that need not know of each other."""
        gradients = self.gradients(block, moments, weights)
        if self.parts is not None:
            common = [name not in self.local for name in block for _ in moments[name]]
            totals = iter(self.totals([g for g, one in zip(gradients, common, strict=True) if one]))
            gradients = tuple(
                next(totals) if one else own for own, one in zip(gradients, common, strict=True)
            )
        return self.natural(block, moments, gradients)

    @torch.enable_grad()
    def gradients(self, block: Sequence[str], moments: State, weights: Weights) -> Tensors:
        """The gradient of F in the mean parameters of factors, one factor after the other.

        It is a sum over rows, and affine in nothing else: over parts of them it adds up.
        """
        leaves = [leaf for name in block for leaf in moments[name]]
        terms = [term for term in self.terms(moments).every if term.log_prob.requires_grad]
        weigh, apply = weighing(weights), cast(Any, _Weighted.apply)
        weighted: Any = sum(apply(term.log_prob, weigh(term)) for term in terms)
        found = iter(torch.autograd.grad(weighted, leaves))
        rows = {term.name: term.multiplicity for term in terms}
        with torch.no_grad():
            return tuple(next(found) / rows[name] for name in block for _ in moments[name])

    def natural(
        self, block: Sequence[str], moments: State, gradients: Sequence[Tensor]
    ) -> dict[str, Tensors]:
        """The best natural parameters of factors, from the gradients of F in their mean parameters."""
        own = iter(gradients)
        with torch.no_grad():
            return {
                name: self.families[name].natural(
                    tuple(m.detach() for m in moments[name]),
                    tuple(next(own) for _ in moments[name]),
                )
                for name in block
            }


class _Weighted(torch.autograd.Function):
    """Zero, with the gradient of a weighted sum: a graph of that need not compute the log-densities.

    A factor before it is not seen, which would take another pass over the weights.
    With the weights handed to ``torch.autograd.grad`` instead, torch would load sympy for their shapes.
    """

    @staticmethod
    def forward(ctx: Any, log_prob: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return weights.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return weights, None


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
