"""How noisy, how slow and how right the gradients of several estimators are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.counts import check_count
from ppl_vi.diagnostics.gradient_draws import Bench, Draw, bench, with_estimators
from ppl_vi.estimators import Estimators
from ppl_vi.objectives import ELBO, Objective

if TYPE_CHECKING:
    import pandas as pd

Program = Callable[..., Any]

_LONG_RUN = 4
_EXACT = "exact: every site enumerated"
_POOLED = "pooled: the draws of all other estimators, weighted by their precision"
_SAME = "a longer run of the same estimator"


def gradient_variance(
    model: Program,
    guide: str | type[AutoGuide] | Program,
    data: Any = None,
    estimators: Mapping[str, Estimators | Objective] | None = None,
    *,
    num_draws: int = 1_000,
    objective: Objective | None = None,
    batch_size: int | None = None,
    data_plate: str | None = None,
    seed: int | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> pd.DataFrame:
    """Compare estimators of the bound's gradient g at the parameters as they are: no step is taken.

        variance = Σ_c Var[g_c],  work = variance · seconds,  z = max_c |mean(g_c) - r_c| / error_c

    Averaging n gradients divides the variance by n and takes n times as long, so the estimator with
    the least work gives the best gradient in a given time. Noisy: each mean has the standard error
    sqrt(variance / num_draws); the variance of a heavy-tailed gradient is found slowly. Estimators
    that learn from step to step do so while they are measured.

    Args:
        model: as in ``fit``.
        guide: as in ``fit``; a name or a class builds one. Parameters are those of the global
            parameter store and of modules where they exist, else at their start. For a fit's own
            write ``with result.fitted.applied():`` around the call.
        data: as in ``fit``. Of minibatches the first is used, and counted for all rows.
        estimators: what to compare, by a name of yours: each what an objective takes as
            ``estimators``, or a whole objective.
        num_draws: gradients of each, drawn in turn so that times compare.
        objective: the bound, and how many particles make one gradient; by default ``ELBO()``.
        batch_size, data_plate, device: as in ``fit``.
        seed: for everything random; the global random state is left as it was.
        progress: show a progress bar.

    Returns:
        One row for each ``(estimator, parameter)``, of the gradient of the bound (maximised) in the
        unconstrained parameter:

        - ``mean``: of the gradient, for several components the Euclidean norm of their means;
        - ``bias_z``: the largest of the components' |z|, the distance of the mean from the reference
          r in standard errors; above 4.5 the estimator is biased, or estimates another bound;
        - ``components``: how many the parameter has;
        - ``variance``: of one gradient, summed over components; 0 where it is only rounding;
        - ``seconds``: of one gradient with all parameters, the median;
        - ``variance_x_seconds``.

        ``attrs["reference"]`` says what r is: exact where all sites can be enumerated, at most 1,024
        joint states; else the mean of the other estimators' draws, weighted by precision, so that
        one that is biased shows in the others' z too; for a single estimator four times as many
        draws of its own, which tells nothing of its bias.

    Raises:
        ValueError: no estimators, fewer than 2 draws, an objective with estimators of its own, or a
            seed that not all generators take.
        TypeError: an estimator or the objective is none.
        GuideError, ModelError, DataError: before the first draw, where an estimator cannot serve a
            site, or programs or data do not fit.
        FloatingPointError: a bound or a gradient is not finite.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from ppl_vi import LeaveOneOut, Pathwise, ScoreFunction, gradient_variance
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> table = gradient_variance(
        ...     model, "normal", torch.ones(100),
        ...     {"pathwise": Pathwise(), "score": ScoreFunction(LeaveOneOut())},
        ...     num_draws=50, seed=0, progress=False)
        >>> variance = table["variance"].groupby("estimator").sum()
        >>> bool(variance["pathwise"] < variance["score"])
        True

    Source: Mohamed et al. (2020), section 3; Rainforth et al. (2018) for errors against work.
    """
    objective = ELBO() if objective is None else objective
    check_count("num_draws", num_draws, least=2)
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(
            'estimators: pass the ones to compare by name, as in {"pathwise": Pathwise()}, not '
            f"{estimators!r}."
        )
    compared = {name: with_estimators(objective, spec) for name, spec in estimators.items()}
    with bench(model, guide, data, batch_size, data_plate, seed, device) as at:
        for each in compared.values():
            at.check(each)
        return measured(at, objective, compared, num_draws, progress)


def measured(
    at: Bench,
    objective: Objective,
    compared: Mapping[str, Objective],
    num_draws: int,
    progress: bool,
) -> pd.DataFrame:
    """The table of ``gradient_variance``.

    Args:
        at: where gradients are drawn.
        objective: the bound that the reference is of.
        compared: the objectives to compare, by name, each checked.
        num_draws: gradients of each.
        progress: show a progress bar.
    """
    exact = at.exact(objective)
    lone = exact is None and len(compared) == 1
    total = num_draws * (len(compared) + lone * _LONG_RUN)
    for name, each in compared.items():
        at.draw(name, each)  # plans are made and baselines start here, not in what is timed
    moments = {name: Moments(at.precision) for name in compared}
    with tqdm(total=total, disable=not progress, unit="gradient") as bar:
        for _ in range(num_draws):
            for name, each in compared.items():
                moments[name].add(at.draw(name, each))
            bar.update(len(compared))
        references = {name: [m for o, m in moments.items() if o != name] for name in compared}
        if lone:
            ((name, each),) = compared.items()
            references[name] = [Moments(at.precision)]
            for _ in range(num_draws * _LONG_RUN):
                references[name][0].add(at.draw(name, each))
                bar.update()
    rows = {
        (name, parameter): _row(own, references[name], exact, where)
        for name, own in moments.items()
        for parameter, where in at.slices.items()
    }
    import pandas as pd  # heavy, and not every fit needs it

    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["estimator", "parameter"])
    table.attrs["reference"] = _SAME if lone else _POOLED if exact is None else _EXACT
    return table


class Moments:
    """Means and variances of gradients as they come, each component's by itself (Welford 1962)."""

    def __init__(self, precision: Tensor) -> None:
        self.count, self.largest_bound = 0, 0.0
        self.mean, self._squares = torch.zeros_like(precision), torch.zeros_like(precision)
        self.seconds: list[float] = []
        self._precision = precision

    def add(self, draw: Draw) -> None:
        self.count += 1
        distance = draw.gradient - self.mean
        self.mean += distance / self.count
        self._squares += distance * (draw.gradient - self.mean)
        self.seconds.append(draw.seconds)
        self.largest_bound = max(self.largest_bound, abs(draw.bound))

    @property
    def rounding(self) -> Tensor:
        """``[components]``: how far rounding moves a gradient, whose terms add up to the bound."""
        size = (self._squares / self.count + self.mean.square()).sqrt()
        return 4 * self._precision * (size + self.largest_bound)

    @property
    def variance(self) -> Tensor:
        """``[components]``: of one gradient."""
        variance = self._squares / (self.count - 1)
        return torch.where(variance > self.rounding.square(), variance, 0.0)

    @property
    def squared_error(self) -> Tensor:
        """``[components]``: the squared standard error of the mean."""
        return self.variance / self.count + self.rounding.square()


def _row(
    own: Moments, others: list[Moments], exact: Tensor | None, where: slice
) -> dict[str, float]:
    """What the table says of one estimator and the parameter in these components."""
    if exact is None:
        reference, error = _pooled(others, where)
    else:
        reference, error = exact[where], own.rounding[where].square()
    mean, variance = own.mean[where], own.variance[where].sum().item()
    z = (mean - reference) / (own.squared_error[where] + error).sqrt().clamp(min=1e-300)
    seconds = statistics.median(own.seconds)
    components = len(mean)
    return {
        "mean": mean.item() if components == 1 else mean.norm().item(),
        "bias_z": z.abs().max().item() if components else 0.0,
        "components": components,
        "variance": variance,
        "seconds": seconds,
        "variance_x_seconds": variance * seconds,
    }


def _pooled(moments: list[Moments], where: slice) -> tuple[Tensor, Tensor]:
    """The mean of several estimators, weighted by their precision, and its squared error.

    One weight for all components of the parameter: a weight that follows a component's own noise
    prefers draws that happen to be near each other.
    """
    means = torch.stack([each.mean[where] for each in moments])
    errors = torch.stack([each.squared_error[where] for each in moments])
    weights = 1 / errors.sum(1, keepdim=True).clamp(min=1e-300)
    weights = weights / weights.sum()
    return (weights * means).sum(0), (weights.square() * errors).sum(0)
