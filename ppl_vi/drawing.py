"""Draw the particles of one estimate as its plan says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vi.errors import GuideError
from ppl_vi.planning import Plan
from ppl_vi.program import Factor, FactorKey, Pair, Run, key, run, run_guide, with_closed_forms


@contextmanager
def naming(name: str, estimator: Any) -> Iterator[None]:
    """Name site and estimator in whatever goes wrong with what the user gave to the estimator."""
    try:
        yield
    except GuideError:
        raise
    except (ValueError, RuntimeError, TypeError, AttributeError, NotImplementedError) as cause:
        raise GuideError(
            f"site '{name}': {type(estimator).__name__} cannot serve it: {cause}. Correct its "
            f"arguments, or use another estimator."
        ) from cause


def draw_with(plan: Plan, pair: Pair) -> Run:
    """Draw each site by its estimator and weigh the particles, in closed form where planned.

    Args:
        plan: how.
        pair: the model, the guide and their arguments.
    """
    made, drawn = _drawn(plan, pair)
    if plan.sampled:
        made = _landing_stuck(made, plan, _scores_again(made, plan, pair, drawn))
    return with_closed_forms(made, plan.forms, plan.sampled) if plan.forms else made


def check_landing(plan: Plan, pair: Pair) -> None:
    """Raise a GuideError where a site is to stick the landing, but the guide does not repeat itself."""
    made, drawn = _drawn(plan, pair)
    scores = _scores_again(made, plan, pair, drawn)
    for factor in made.factors:
        if factor.origin == "guide" and not _same(factor.log_prob, scores[key(factor)]):
            raise GuideError(
                f"site '{factor.sites[0]}': sticking the landing runs the guide twice on the same "
                f"draws, and it gave two different distributions (dropout, say). Use Pathwise()."
            )


def _drawn(plan: Plan, pair: Pair) -> tuple[Run, list[tuple[str, Tensor]]]:
    """A run, and every draw of the guide in order."""
    drawn: list[tuple[str, Tensor]] = []

    def draw(name: str, distribution: Any) -> Tensor:
        with naming(name, plan.estimators[name]):
            value = plan.estimators[name].draw(distribution, plan.places[name])
        source = plan.sources[name]
        value = value if source is None else value[source.to(value.device)]
        drawn.append((name, value))
        return value

    return run(plan.structure, pair, draw, plan.grid.size), drawn


def _scores_again(
    made: Run, plan: Plan, pair: Pair, drawn: Sequence[tuple[str, Tensor]]
) -> dict[FactorKey, Tensor]:
    """log q of the same draws, held fixed: what depends on the guide's parameters alone."""
    values: Iterator[tuple[str, Tensor]] = iter(drawn)

    def replay(name: str, distribution: Any) -> Tensor:
        _, value = next(values)
        # A Delta is no draw: its value is the guide's own function of the other draws.
        found: Tensor = distribution() if plan.structure.sites[name].fixed else value.detach()
        return found

    again = run_guide(plan.structure, pair, replay, made.num_particles, made.rows)
    return {key(factor): factor.log_prob for factor in again.factors}


def _landing_stuck(made: Run, plan: Plan, scores: Mapping[FactorKey, Tensor]) -> Run:
    """The run whose ``plan.sampled`` sites lose the direct gradient of log q, of mean zero."""

    def without(factor: Factor) -> Factor:
        if factor.origin != "guide" or factor.sites[0] not in plan.sampled:
            return factor
        score = scores[key(factor)]
        return replace(factor, log_prob=factor.log_prob - score + score.detach())

    return replace(made, factors=tuple(without(factor) for factor in made.factors))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)
