"""Coordinate ascent: the expected log-joint of a program, and what its gradients say.

Written in the mean parameters of each factor, F = E log p is linear in those of one factor when the
others are held. So the best natural parameters of a factor are the gradient of F in its mean
parameters. With discrete latents summed out of exp F, that gradient carries their probabilities.

Source: Winn and Bishop (2005); Hoffman, Blei, Wang and Paisley (2013), section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.densities import expected_log_density
from ppl_vi.conjugacy.families import Factor, Tensors
from ppl_vi.conjugacy.values import Law, NotConjugateError, Uncertain
from ppl_vi.program import Pair, Term, Terms, expected_terms, summed_out, weighted_sum

_MOST_ITERATIONS = 100

State = Mapping[str, Tensors]
"""Tensors of each factor, by site: natural parameters, or mean parameters."""


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
    """

    pair: Pair
    families: Mapping[str, Factor]
    draws: Mapping[str, Tensor]
    enumerated: tuple[str, ...]
    nesting: int
    blocks: Sequence[tuple[str, ...]] = ()

    def terms(self, moments: State, tilts: dict[str, Tensor] | None = None) -> Terms:
        """The expected log-density of each site, given the mean parameters of each factor."""
        return self.terms_of(self.laws(moments), tilts)

    def laws(self, moments: State) -> dict[str, Law]:
        """The law of each site, given the mean parameters of each factor."""
        own = (factor.laws(moments[name]) for name, factor in self.families.items())
        return {site: law for laws in own for site, law in laws.items()}

    def terms_of(
        self,
        laws: Mapping[str, Law],
        tilts: dict[str, Tensor] | None = None,
        density: Callable[[str, Any, Any], Tensor] | None = None,
    ) -> Terms:
        """The expected log-density of each site, or another function of it, given the sites' laws."""
        values = {site: Uncertain.of(self.draws[site], law) for site, law in laws.items()}
        return expected_terms(
            self.pair, values, self.enumerated, self.nesting, density or _density, tilts
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

    def random_responsibilities(self, state: State) -> dict[str, Tensor]:
        """Random probabilities of each enumerated site, laid out as its term is."""
        found = {}
        for term in self.terms(self.moments(state)).every:
            if term.own_dim is not None:
                shape = list(term.log_prob.shape)
                plates = len(shape) - self.nesting
                shape[:plates] = [1] * plates
                shape[term.own_dim] = term.log_prob.shape[term.own_dim]
                drawn = torch.rand(shape).to(term.log_prob)
                found[term.name] = drawn / drawn.sum(term.own_dim, keepdim=True)
        return found

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

    def _tied(self, terms: Terms) -> set[int]:
        """The enumerated dimensions that meet another one in some term."""
        tied: set[int] = set()
        for term in terms.every:
            left = range(-term.log_prob.dim(), -self.nesting - 1)
            own = {dim for dim in left if term.log_prob.shape[dim] > 1}
            if len(own) > 1:
                tied |= own
        return tied

    def maximize(self, state: State, parameters: Sequence[Tensor]) -> None:
        """Move the model's parameters uphill, to where the bound is highest at these factors.

        The probabilities of the discrete latents are held (an M-step), so that the bound cannot fall.
        """
        moments = {n: tuple(m.detach() for m in own) for n, own in self.moments(state).items()}
        _, marginals = self._marginals(moments)
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
