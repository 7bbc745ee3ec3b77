"""What a fit gives back: the posterior, and what can be asked of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro.infer
import torch
from torch import Tensor

from ppl_vi.compilation import Execution
from ppl_vi.diagnostics.latent_report import latent_report
from ppl_vi.diagnostics.trust import Trust
from ppl_vi.estimate import Estimate
from ppl_vi.evaluation import WeightedPair
from ppl_vi.job import Job
from ppl_vi.objectives import ELBO
from ppl_vi.parameters import FittedParameters
from ppl_vi.program import Pair
from ppl_vi.questions import PredictiveDraws, Questions
from ppl_vi.questions.exporting import attributes_of
from ppl_vi.questions.predictive import new_arguments
from ppl_vi.randomness import forked_rng
from ppl_vi.running import in_words
from ppl_vi.saving import Saved
from ppl_vi.states import States
from ppl_vi.stopping.reasons import Convergence, Restart, StopReason

if TYPE_CHECKING:
    import pandas as pd

Draws = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class FitResult(PredictiveDraws, Trust, Questions, Saved):
    """A fitted posterior.

    Attributes:
        losses: ``[num_steps]``, minus the objective's estimate at each step.
        bound: the objective's value on all rows, with its standard error; that of exact updates has
            none, unless they leave sites to gradients: it is then taken on fresh draws.
        elbo: the ELBO on all rows, in nats, with its Monte Carlo ``standard_error``.
        params: the learned parameters of guide and model by name, on their own supports.
        guide: the fitted guide, a Pyro guide.
        estimators: which gradient estimator each site used; empty with an objective of Pyro's.
        states: what estimators and baselines have learned, by site.
        num_steps: steps taken.
        seconds: wall time of the fit.
        stop_reason: why it stopped; printed, it is a sentence.
        execution: how the steps were taken, eager or compiled, and why.
        remarks: what else a person should know, a line each: components that are empty, for example.
        objective: the bound that was maximised.
        seed: of the fit, where one was given.
        convergence: where it stopped, and what it may have left undone; ``None`` without steps.
        restarts: the bound, the steps and the stop reason of every start, where there were several.
    """

    losses: Tensor
    bound: Estimate
    elbo: Estimate
    estimators: dict[str, str]
    num_steps: int
    seconds: float
    stop_reason: StopReason
    job: Job = field(repr=False)
    start: FittedParameters = field(repr=False)
    fitted: FittedParameters = field(repr=False)
    execution: Execution
    states: States = field(repr=False, default_factory=dict)
    remarks: tuple[str, ...] = ()
    objective: pyro.infer.ELBO = field(repr=False, default_factory=ELBO)
    seed: int | None = None
    convergence: Convergence | None = None
    restarts: tuple[Restart, ...] = ()

    @property
    def guide(self) -> Callable[..., Any]:
        """The fitted guide; a function is wrapped, so that it runs on the fitted parameters."""
        guide = self.job.guide
        if isinstance(getattr(guide, "__self__", guide), torch.nn.Module):
            return guide

        def fitted_guide(*args: Any, **kwargs: Any) -> Any:
            with self.fitted.applied():
                return guide(*args, **kwargs)

        return fitted_guide

    @property
    def params(self) -> Draws:
        """The learned parameters by name, detached."""
        return self.fitted.constrained()

    def __repr__(self) -> str:
        remarks = f", remarks={self.remarks!r}" if self.remarks else ""
        return (
            f"FitResult(elbo={self.elbo}, num_steps={self.num_steps}, "
            f"seconds={self.seconds:.1f}, estimators={in_words(self.estimators)!r}, "
            f"stop_reason={str(self.stop_reason)!r}{remarks})"
        )

    def _attributes(self) -> dict[str, Any]:
        return attributes_of(self)

    def kl_report(self, *args: Any, num_samples: int = 100, **kwargs: Any) -> pd.DataFrame:
        """Where the bound comes from, in nats per element of each site's plates (per datum).

        A row for each site and, where the factor and its prior are products over the event, for each
        of its dimensions: ``reconstruction`` E_q[log p(x | z)] of observed sites, ``kl`` of latents,
        ``mean_variance``, the variance over the data of the posterior mean, and ``active``, whether
        that is above 0.01, counted in the row ``"all"``. Closed forms are used where there are any;
        the rest is noisy as one over the square root of ``num_samples``. Warns where a posterior has
        collapsed onto its prior.

        Args:
            *args: the model's arguments; none for the training data.
            num_samples: draws from the guide.
            **kwargs: the model's keyword arguments.

        Example:
            >>> result.kl_report().loc["z"]  # doctest: +SKIP

        Source: Burda, Grosse and Salakhutdinov (2016) for active units.
        """
        pairs: Iterable[WeightedPair] = self.job.weighted_pairs()
        if args or kwargs:
            new = Pair(self.job.model, self.job.guide, *new_arguments(args, kwargs, self.job))
            pairs = [(new, 1.0, nullcontext())]
        with self.fitted.applied(), forked_rng():
            report = latent_report(pairs, num_samples)
        for line in report.collapsed():
            warnings.warn(line, stacklevel=2)
        return report.table()
