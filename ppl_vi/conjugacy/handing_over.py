"""Which continuous latents are left to gradients, since an expectation has no closed form with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vi.conjugacy.ascent import Ascent
from ppl_vi.conjugacy.densities import expected_log_density, held_by
from ppl_vi.conjugacy.values import NotConjugateError, checked, sites_of


class Refused(NamedTuple):
    """An expected log-density without a closed form.

    Attributes:
        site: whose density it is.
        reason: what has no place in the algebra.
        latents: those of the operation that left the algebra, or all that it involves.
    """

    site: str
    reason: str
    latents: frozenset[str]

    @property
    def error(self) -> NotConjugateError:
        """It as an error."""
        return NotConjugateError(
            f"site '{self.site}' is not conjugate: {self.reason}. Write the model without it, or fit "
            f"it with the guide 'normal'."
        )


def left_to_gradients(
    ascent: Ascent, reasons: Mapping[str, str]
) -> tuple[dict[str, str], Refused | None]:
    """Why each latent that is not conjugate is not, as few as possible; and what was met first.

    At a given value of a latent all that is computed from it alone is certain. So latents that left the
    algebra are given, one after the other, until every expectation has a closed form.

    Args:
        ascent: with a family for each continuous latent that has one.
        reasons: why the others have none.

    Raises:
        NotConjugateError: the program uses the value of a latent.
    """
    found = dict(reasons)
    first: Refused | None = None
    while refused := _refused(ascent, found):
        first = first or refused[0]
        given = frozenset(found)
        clear = [one for one in refused if len(one.latents) == 1]
        for one in clear or refused[:1]:
            names = one.latents if clear else _fewest(ascent, given, one)
            if names <= given:
                raise one.error
            for name in sorted(names):
                found.setdefault(name, f"site '{one.site}': {one.reason}")
    return found, first


def _fewest(ascent: Ascent, given: Collection[str], refused: Refused) -> frozenset[str]:
    """One latent that is enough, that with the fewest entries; or one that helps; else all of them."""

    def cost(name: str) -> tuple[bool, bool, int, str]:
        left = [one for one in _refused(ascent, {*given, name}) if one.site == refused.site]
        same = any(one.reason == refused.reason for one in left)
        return same, bool(left), ascent.draws[name].numel(), name

    costs = sorted(map(cost, refused.latents))
    return frozenset((costs[0][-1],)) if costs and not costs[0][0] else refused.latents


def _refused(ascent: Ascent, given: Collection[str]) -> list[Refused]:
    """The sites without a closed form, at given values of some latents."""
    found = []

    def look(name: str, distribution: Any, value: Any) -> Tensor:
        try:
            return expected_log_density(distribution, value)
        except NotConjugateError as error:
            latents = sites_of((value, held_by(distribution)))
            found.append(Refused(name, str(error), latents))
            return torch.zeros(())

    laws = ascent.laws(ascent.moments(ascent.around(ascent.draws, 0.5)))
    with checked():
        ascent.terms_of({n: law for n, law in laws.items() if n not in given}, density=look)
    return found
