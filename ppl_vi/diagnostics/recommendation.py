"""Which estimator each site should have: all that serve it are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoGuide

from ppl_vi.counts import check_count
from ppl_vi.diagnostics.gradient_draws import Bench, bench, with_estimators
from ppl_vi.diagnostics.gradient_variance import measured
from ppl_vi.errors import GuideError
from ppl_vi.estimators import (
    Baseline,
    ControlVariate,
    DisARM,
    Enumerate,
    Estimator,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Pathwise,
    Relax,
    ScoreFunction,
)
from ppl_vi.objectives import ELBO, Objective

if TYPE_CHECKING:
    import pandas as pd

Program = Callable[..., Any]

_CANDIDATES: tuple[Estimator, ...] = (
    Pathwise(),
    Pathwise(stick_the_landing=True),
    Enumerate(),
    ScoreFunction(LeaveOneOut()),
    ScoreFunction(MovingAverage()),
    ScoreFunction(ControlVariate()),
    MeasureValued(),
    DisARM(),
    Relax(),
)
_MOST_ERRORS, _FALSE_ALARMS = 4.5, 0.01


class Recommendation(dict[str, Estimator]):
    """An estimator for each site, to be passed as ``estimators=``, and why.

    Attributes:
        reasons: a sentence for each site.
        table: the measurements, as ``gradient_variance`` gives them, by ``"site: estimator"``.

    Example:
        >>> import pandas as pd
        >>> from ppl_vi import Enumerate, Recommendation
        >>> Recommendation({"z": Enumerate()}, {"z": "Enumerate(): no noise."}, pd.DataFrame())
        site  estimator    reason
        z     Enumerate()  Enumerate(): no noise.
    """

    def __init__(
        self, estimators: Mapping[str, Estimator], reasons: Mapping[str, str], table: pd.DataFrame
    ) -> None:
        super().__init__(estimators)
        self.reasons = dict(reasons)
        self.table = table

    def __repr__(self) -> str:
        rows = [("site", "estimator", "reason")]
        for site, reason in self.reasons.items():
            rows.append((site, in_short(self[site]) if site in self else "auto", reason))
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in rows)


def recommend_estimators(
    model: Program,
    guide: str | type[AutoGuide] | Program,
    data: Any = None,
    *,
    candidates: Mapping[str, Sequence[Estimator]] | None = None,
    num_draws: int = 300,
    objective: Objective | None = None,
    batch_size: int | None = None,
    data_plate: str | None = None,
    seed: int | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Recommendation:
    """For each site the estimator with the least variance · seconds, at the parameters as they are.

    Each site is varied alone, the others on ``"auto"``, over all estimators that serve it, and the
    variance is summed over all parameters. Noisy: near winners may change places with the seed, and
    what is best at the start of a fit need not be so at its end. An estimator whose mean is more than
    4.5 standard errors from the reference is not recommended (more where there are so many
    components that one in a hundred right estimators would be that far by chance).

    Args:
        model, guide, data: as in ``gradient_variance``.
        candidates: by site the estimators to choose among; by default, for any site, ``Pathwise``
            with and without ``stick_the_landing``, ``Enumerate``, ``ScoreFunction`` with each
            baseline that needs no network, ``MeasureValued``, ``DisARM`` and ``Relax``. Those that
            refuse the site, the objective or the program are left out.
        num_draws: gradients of each candidate.
        objective: the bound, and how many particles make one gradient; by default ``ELBO()``.
        batch_size, data_plate, seed, progress, device: as in ``gradient_variance``.

    Returns:
        The estimators by site, with reasons and the table. A site with none to recommend is left to
        ``"auto"``, and its reason says so.

    Raises:
        GuideError: a candidate's site is not drawn by the guide, no candidate serves a site, or
            nothing is random.
        ValueError, TypeError, ModelError, DataError, FloatingPointError: as ``gradient_variance``.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from ppl_vi import ELBO, recommend_estimators
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.3))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))
        >>> def guide():
        ...     pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))
        >>> chosen = recommend_estimators(model, guide, num_draws=50, seed=0, progress=False)
        >>> list(chosen)
        ['z']
        >>> objective = ELBO(estimators=chosen)

    Source: Mohamed et al. (2020), section 9, weighs noise against cost alike.
    """
    objective = ELBO() if objective is None else objective
    check_count("num_draws", num_draws, least=2)
    with bench(model, guide, data, batch_size, data_plate, seed, device) as at:
        offered = _offered(at, objective, candidates or {})
        compared = {
            _row_name(site, name): with_estimators(objective, {site: estimator})
            for site, named in offered.items()
            for name, estimator in named.items()
        }
        table = measured(at, objective, compared, num_draws, progress)
    chosen, reasons = {}, {}
    for site, named in offered.items():
        best, reasons[site] = _best(table, site, list(named))
        if best is not None:
            chosen[site] = named[best]
    return Recommendation(chosen, reasons, table)


def in_short(value: Any) -> str:
    """An estimator or a baseline as one would write it, what is left at its default left out."""
    if not dataclasses.is_dataclass(value):
        return " ".join(repr(value).split())
    given = []
    for field in dataclasses.fields(value):
        own, default = getattr(value, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if own != default:
            prefix = "" if isinstance(own, Baseline) else f"{field.name}="
            given.append(prefix + in_short(own))
    return f"{type(value).__name__}({', '.join(given)})"


def _offered(
    at: Bench, objective: Objective, candidates: Mapping[str, Sequence[Estimator]]
) -> dict[str, dict[str, Estimator]]:
    """The candidates that serve, by site and by name."""
    sites = [name for name in at.structure.drawn if not at.structure.sites[name].fixed]
    if not sites:
        raise GuideError("the guide draws nothing at random, so there is no estimator to choose.")
    for name in candidates:
        if name not in sites:
            raise GuideError(
                f"site '{name}' has candidates, but the guide draws no such site (it draws "
                f"{', '.join(map(repr, sites))}). Correct the name, or leave it out."
            )
    return {
        site: _serving(at, objective, site, candidates.get(site, _CANDIDATES)) for site in sites
    }


def _serving(
    at: Bench, objective: Objective, site: str, candidates: Sequence[Estimator]
) -> dict[str, Estimator]:
    serving: dict[str, Estimator] = {}
    if not candidates:
        raise GuideError(f"site '{site}': the list of candidates is empty. Leave the site out.")
    refusal: GuideError | None = None
    for candidate in candidates:
        try:
            at.check(with_estimators(objective, {site: candidate}))
        except GuideError as error:
            refusal = error
            continue
        name = short = in_short(candidate)
        while name in serving:  # networks may differ where their descriptions do not
            name = f"{short} #{len(serving) + 1}"
        serving[name] = candidate
    if not serving:
        raise GuideError(
            f"site '{site}': no candidate serves it under {type(objective).__name__}. The last one: "
            f"{refusal}"
        ) from refusal
    return serving


def _row_name(site: str, name: str) -> str:
    return f"{site}: {name}"


def _best(table: pd.DataFrame, site: str, names: list[str]) -> tuple[str | None, str]:
    """The name of the best estimator that is not seen to be biased, and why."""
    rows = {name: table.loc[_row_name(site, name)] for name in names}
    far = {name: rows[name]["bias_z"].max() for name in names}
    from scipy.stats import norm  # heavy, and not every fit needs it

    limit = max(_MOST_ERRORS, norm.isf(_FALSE_ALARMS / 2 / rows[names[0]]["components"].sum()))
    biased = [f"{name} (z = {far[name]:.1f})" for name in names if far[name] > limit]
    besides = f"; biased: {', '.join(biased)}" if biased else ""
    work = {name: rows[name]["variance_x_seconds"].sum() for name in names}
    seconds = {name: rows[name]["seconds"].iloc[0] for name in names}
    right = sorted(
        (name for name in names if far[name] <= limit), key=lambda name: (work[name], seconds[name])
    )
    if not right:
        return None, f"left to 'auto', since no candidate is near the reference{besides}."
    return right[0], f"{right[0]}: {_compared(right, work, seconds)}{besides}."


def _compared(names: list[str], work: Mapping[str, float], seconds: Mapping[str, float]) -> str:
    """The first of the names against the second, in figures."""
    first = names[0]
    had = f"variance x seconds {_figure(work[first])}" if work[first] else "no noise"
    if len(names) == 1:
        return f"{had}, the only choice"
    second = names[1]
    if work[first]:
        ratio = work[second] / work[first]
        return f"{had}, {ratio:.1f} times less than {second} ({_figure(work[second])})"
    if work[second]:
        return f"{had}; the next, {second}, has variance x seconds {_figure(work[second])}"
    ratio = seconds[second] / seconds[first]
    return f"{had}, nor has {second}, which takes {ratio:.1f} times as long"


def _figure(value: float) -> str:
    """Two digits: 3.1e-4."""
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"
