"""The measure-valued (weak-derivative) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.estimators.base import Estimator, usual
from ppl_vi.estimators.draws import Draws
from ppl_vi.estimators.grid import Place
from ppl_vi.estimators.score_function import check_has_score, detached_draw
from ppl_vi.estimators.weak_derivatives import DECOMPOSITIONS, Decomposition, category
from ppl_vi.program import Site, expanded_parameter, innermost

_FAMILIES = (*DECOMPOSITIONS, "Categorical")


@dataclass(frozen=True, repr=False)
class MeasureValued(Estimator):
    """Run the program at alternatives to each draw: d/dλ E_q[f] = c (E_{q⁺}[f] - E_{q⁻}[f]).

    For Normal (location and scale), Bernoulli, Categorical, Poisson, Gamma and Exponential. Unbiased,
    needs no derivative of f, and serves every bound. One element of the site is varied at a time, so
    that the program runs at 4 alternatives per element of a Normal's event, 2 of a Bernoulli's, 3 of
    a Gamma's, 1 of a Poisson's or an Exponential's and K of a Categorical's.

    Raises:
        GuideError: the site has another family, or the program mixes the elements of one of its
            plates.

    Example:
        >>> from ppl_vi import ELBO, MeasureValued
        >>> objective = ELBO(num_particles=4, estimators={"z": MeasureValued()})

    Source: Pflug (1989); Mohamed, Rosca, Figurnov and Mnih (2020), section 6.
    """

    uses_credit: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True
    takes_apart: ClassVar[bool] = True

    def check(self, site: Site, num_particles: int) -> None:
        check_has_score(site, type(self).__name__)
        if site.distribution not in _FAMILIES:
            raise GuideError(
                f"site '{site.name}': MeasureValued knows the weak derivatives of "
                f"{', '.join(_FAMILIES)}, not those of {site.distribution}. Use {usual(site)} for this "
                f"site."
            )

    def num_replicas(self, site: Site) -> int:
        if site.distribution == "Categorical":
            return site.support_size * site.elements
        count = sum(each.alternatives for each in DECOMPOSITIONS[site.distribution])
        return count * site.elements

    def draw(self, distribution: Any, place: Place) -> Tensor:
        value = detached_draw(distribution)
        batch = distribution.batch_shape
        grid = value.reshape(*place.shape, *batch[1:], -1).clone()
        draw = grid[:, 0].clone()
        with torch.no_grad():
            given = {}
            for name in _names(innermost(distribution)):
                parameter = expanded_parameter(distribution, name)
                extra = parameter.shape[len(batch) + distribution.event_dim :]
                parameter = parameter.reshape(*place.shape, *batch[1:], grid.shape[-1], *extra)
                given[name] = parameter[:, 0]
            replicas = iter(place.replicas)
            for decomposition in _decompositions(innermost(distribution)):
                for alternative in decomposition.sample(given, draw):
                    for element in range(grid.shape[-1]):
                        replica = next(replicas)
                        grid[:, replica] = draw
                        grid[:, replica, ..., element] = alternative[..., element]
        return grid.reshape(value.shape)

    def term(self, draws: Draws, credit: Tensor, state: nn.Module | None) -> Tensor:
        lead = credit.dim()
        value = draws.value
        value = value.reshape(*value.shape[:lead], -1)
        elements = value.shape[-1]
        given = {}
        for name in _names(draws.family):
            parameter = draws.logits() if name == "logits" else draws.parameter(name)
            extra = parameter.shape[draws.value.dim() :]
            given[name] = parameter.reshape(*value.shape, *extra)[:, 0]
        total, replica = credit.new_zeros(()), 1  # replica 0 is the draw itself
        for decomposition in _decompositions(draws.family):
            varied = decomposition.of(given)
            count = decomposition.alternatives
            own = value[:, replica : replica + count * elements]
            own = own.reshape(len(own), count, elements, *own.shape[2:])
            # Alternative a varies element e in replica (a, e).
            values = own.diagonal(dim1=2, dim2=-1).unbind(1)
            with torch.no_grad():
                weights = decomposition.weights(given, values)
            for weight in weights:
                answer = credit[:, replica : replica + elements].movedim(1, -1)
                answer = torch.where(weight == 0, 0.0, answer)  # 0 · -inf would be NaN
                total = total + (varied * weight * answer).sum()
                replica += elements
        return total


def _names(base: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(d.parameter for d in _decompositions(base)))


def _decompositions(base: Any) -> tuple[Decomposition, ...]:
    if isinstance(base, torch.distributions.Categorical):
        return tuple(category(k) for k in range(base.param_shape[-1]))
    return DECOMPOSITIONS[type(base).__name__]
