"""Coordinate ascent: the expected log-joint of a program, and what its gradients say.

Written in the mean parameters of each factor, F = E log p is linear in those of one factor when the
others are held. So the best natural parameters of a factor are the gradient of F in its mean
parameters. With discrete latents summed out of exp F, that gradient carries their probabilities.

Source: Winn and Bishop (2005); Hoffman, Blei, Wang and Paisley (2013), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.densities import expected_log_density
from ppl_vi.conjugacy.families import Family, Tensors
from ppl_vi.conjugacy.values import NotConjugateError, Uncertain
from ppl_vi.program import Pair, Term, Terms, expected_terms, summed_out, weighted_sum

_MOST_ITERATIONS = 100

State = Mapping[str, Tensors]
"""Tensors of each factor, by site: natural parameters, or mean parameters."""


@dataclass(frozen=True, eq=False)
class Ascent:
    """Coordinate ascent on one program.

    Attributes:
        pair: the model and its arguments.
        families: by site.
        draws: of the sites, for shapes and for Python code that looks at them.
        enumerated: names of discrete latents.
        nesting: how many plates the model has within each other.
        blocks: sites that are updated together, in order.
    """

    pair: Pair
    families: Mapping[str, Family]
    draws: Mapping[str, Tensor]
    enumerated: tuple[str, ...]
    nesting: int
    blocks: Sequence[tuple[str, ...]] = ()

    def terms(self, moments: State, tilts: dict[str, Tensor] | None = None) -> Terms:
        """The expected log-density of each site, given the mean parameters of each factor."""
        values = {
            name: Uncertain.of(self.draws[name], family.law(moments[name]))
            for name, family in self.families.items()
        }
        return expected_terms(self.pair, values, self.enumerated, self.nesting, _density, tilts)

    def moments(self, state: State) -> dict[str, Tensors]:
        """The mean parameters, as leaves that gradients are taken in."""
        with torch.no_grad():
            found = {name: f.moments(state[name]) for name, f in self.families.items()}
        return {name: tuple(m.requires_grad_() for m in own) for name, own in found.items()}

    def elbo(self, state: State) -> Tensor:
        """The exact bound: F plus the entropies of the factors."""
        with torch.no_grad():
            expected = summed_out(self.terms(self.moments(state)), self.enumerated)
            entropies = [f.entropy(state[name]).sum() for name, f in self.families.items()]
            total: Tensor = expected + sum(entropies)
        return total

    def sweep(self, state: State) -> dict[str, Tensors]:
        """The natural parameters after an update of every block."""
        state = dict(state)
        for block in self.blocks:
            moments = self.moments(state)
            state |= self._best(block, moments, summed_out(self.terms(moments), self.enumerated))
        return state

    def from_responsibilities(self, state: State, of: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """The natural parameters after an update of every block at given probabilities.

        Args:
            state: before.
            of: the probabilities of each enumerated site, laid out as its term is.
        """
        state = dict(state)
        for block in self.blocks:
            moments, latest = self.moments(state), dict[int, Tensor]()
            expected = weighted_sum(self.terms(moments), lambda t: _weight(t, of, latest))  # noqa: B023
            state |= self._best(block, moments, expected)
        return state

    def conditionals(self, state: State) -> dict[str, Tensor]:
        """q of each enumerated site that no term ties to another one, ``[*plates, states]``."""
        terms, marginals = self._marginals(self.moments(state))
        tied = self._tied(terms)
        found = {}
        for term in terms.every:
            if term.own_dim is None or term.own_dim in tied:
                continue
            joint = marginals[term.name].movedim(term.own_dim, -1)
            joint = joint.reshape(joint.shape[joint.dim() - 1 - term.depth :])
            found[term.name] = joint / joint.sum(-1, keepdim=True)
        return found

    def counts(self, state: State) -> dict[str, Tensor]:
        """How many elements q expects in each state of each enumerated site, ``[states]``."""
        terms, marginals = self._marginals(self.moments(state))
        found = {}
        for term in terms.every:
            if term.own_dim is not None:
                weight = marginals[term.name] * term.scale
                mask = terms.trace.nodes[term.name]["mask"]
                weight = weight if mask is None else weight * mask
                found[term.name] = weight.movedim(term.own_dim, 0).flatten(1).sum(-1)
        return found

    def _tied(self, terms: Terms) -> set[int]:
        """The enumerated dimensions that meet another one in some term."""
        tied: set[int] = set()
        for term in terms.every:
            left = range(-term.log_prob.dim(), -self.nesting - 1)
            own = {dim for dim in left if term.log_prob.shape[dim] > 1}
            if len(own) > 1:
                tied |= own
        return tied

    def maximize(
        self,
        state: State,
        parameters: Sequence[Tensor],
        of: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Move the model's parameters uphill, to where the bound is highest at these factors.

        The probabilities of the discrete latents are held (an M-step), so that the bound cannot fall.

        Args:
            state: of the factors.
            parameters: unconstrained; they are moved in place.
            of: the probabilities of each enumerated site, laid out as its term is; else the best ones.
        """
        moments = {n: tuple(m.detach() for m in own) for n, own in self.moments(state).items()}
        if of is None:
            _, marginals = self._marginals(moments)
        else:
            latest: dict[int, Tensor] = {}
            every = self.terms(moments).every
            marginals = {term.name: _weight(term, of, latest) for term in every}
        flat = torch.finfo(parameters[0].dtype).eps
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=_MOST_ITERATIONS,
            tolerance_grad=flat**0.75,
            tolerance_change=flat,
            line_search_fn="strong_wolfe",
        )
        scale = sum(m.abs().sum().item() for m in marginals.values())

        def loss() -> Tensor:
            expected = weighted_sum(self.terms(moments), lambda term: marginals[term.name])
            objective = -expected / scale
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(objective, parameters), strict=True
            ):
                parameter.grad = gradient
            return objective

        with torch.enable_grad():
            optimizer.step(loss)
        for parameter in parameters:
            parameter.grad = None

    def _marginals(self, moments: State) -> tuple[Terms, dict[str, Tensor]]:
        """The terms, and the probability under q of each of their entries, times its scale."""
        tilts: dict[str, Tensor] = {}
        terms = self.terms(moments, tilts)
        found = torch.autograd.grad(summed_out(terms, self.enumerated), list(tilts.values()))
        scales = {term.name: term.scale for term in terms.every}
        return terms, {n: g / scales[n] for n, g in zip(tilts, found, strict=True)}

    def _best(self, block: Sequence[str], moments: State, expected: Tensor) -> dict[str, Tensors]:
        """The best natural parameters of factors that need not know of each other."""
        leaves = [leaf for name in block for leaf in moments[name]]
        gradients = iter(torch.autograd.grad(expected, leaves))
        with torch.no_grad():
            return {
                name: self.families[name].natural(
                    tuple(m.detach() for m in moments[name]),
                    tuple(next(gradients) for _ in moments[name]),
                )
                for name in block
            }


def _density(name: str, distribution: Any, value: Any) -> Tensor:
    try:
        return expected_log_density(distribution, value)
    except NotConjugateError as error:
        raise NotConjugateError(f"site '{name}' is not conjugate: {error}") from error


def _weight(term: Term, of: Mapping[str, Tensor], latest: dict[int, Tensor]) -> Tensor:
    """The joint probability of the enumerated values that a term depends on.

    Dimensions are used again along a Markov chain: each belongs to the last site that took it.
    """
    if term.own_dim is not None:
        latest[term.own_dim] = of[term.name]
    weight = torch.ones((), dtype=term.log_prob.dtype, device=term.log_prob.device)
    for dim, probabilities in latest.items():
        if term.log_prob.dim() >= -dim and term.log_prob.shape[dim] > 1:
            weight = weight * probabilities
    return weight
