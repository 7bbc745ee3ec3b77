"""What a fit gives back: the posterior, and what can be asked of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ppl_vi.arguments import as_arguments
from ppl_vi.compilation import Execution
from ppl_vi.diagnostics import inference_data, posterior_table
from ppl_vi.diagnostics.latent_report import collapsed, latent_report
from ppl_vi.estimate import Estimate
from ppl_vi.evaluation import WeightedPair
from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters
from ppl_vi.preparation import structure_of
from ppl_vi.program import (
    Pair,
    Structure,
    completed,
    deterministic_values,
    draw_latents,
    observed_values,
    pointwise_log_likelihood,
    predictive_draws,
    squeezed,
)
from ppl_vi.questions import Questions
from ppl_vi.randomness import forked_rng
from ppl_vi.running import in_words
from ppl_vi.states import States
from ppl_vi.stopping import Convergence, Restart, StopReason
from ppl_vi.threads import threads_for

if TYPE_CHECKING:
    import pandas as pd

Draws = dict[str, Tensor]
_DRAWS = 1_000
_ELEMENTS_AT_ONCE = 5_000_000


@dataclass(frozen=True, repr=False)
class FitResult(Questions):
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

    def sample(self, num_samples: int = _DRAWS) -> Draws:
        """Draw from the posterior: every latent, summed-out discrete and deterministic sites too.

        Discrete latents that were summed out are drawn from their exact conditional given the other
        latents. A model with ``relabel(draws)`` puts exchangeable components into its own order.

        Args:
            num_samples: how many independent draws.

        Returns:
            ``[num_samples, *plates, *event]`` by site.

        Raises:
            ValueError: ``num_samples`` is not a positive integer.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Poisson(rate), obs=x)
            >>> result = fit(model, data=torch.ones(20), steps=50, progress=False)
            >>> result.sample(5)["rate"].shape
            torch.Size([5])
        """
        with self._posterior(num_samples) as posterior:
            return self._presented(posterior)

    def predict(self, *args: Any, num_samples: int = _DRAWS, **kwargs: Any) -> Draws:
        """Draw new observations from the posterior predictive distribution.

        Without arguments the training data are replicated, given all latents. With arguments the
        model is run on them: latents outside the data plates come from the posterior, those of new
        rows from the model given these. Values passed for observed sites are ignored.

        Args:
            *args: the model's arguments; none for the training data.
            num_samples: how many draws.
            **kwargs: the model's keyword arguments.

        Returns:
            ``[num_samples, *plates, *event]`` by observed site.
        """
        with self._posterior(num_samples) as (structure, pair, draws):
            if args or kwargs:
                draws = {name: v for name, v in draws.items() if not self._of_rows(structure, name)}
                pair = Pair(pair.model, pair.guide, *_new_arguments(args, kwargs))
            else:
                structure = completed(structure)
            new = predictive_draws(structure, pair, draws, num_samples)
            return {name: squeezed(structure, name, value) for name, value in new.items()}

    def log_likelihood(self, num_samples: int = _DRAWS) -> Draws:
        """The pointwise log-likelihood log p(x_i | draw) in nats, at posterior draws.

        Discrete latents that were summed out in the fit are summed out here, where one observed site
        alone depends on them.

        Args:
            num_samples: how many draws.

        Returns:
            ``[num_samples, *plates]`` by observed site.
        """
        with self._posterior(num_samples) as posterior:
            return _log_likelihood(posterior)

    def to_arviz(self, num_samples: int = _DRAWS) -> Any:
        """The posterior for ArviZ: posterior, posterior_predictive, log_likelihood, observed_data.

        All groups belong to the same independent draws, which make one chain. Plates are named
        dimensions.

        Args:
            num_samples: how many draws.

        Returns:
            ``arviz.InferenceData``, or an ``xarray.DataTree`` with ArviZ 1.x.

        Example:
            >>> idata = result.to_arviz()  # doctest: +SKIP
            >>> az.plot_forest(idata, var_names=["mu"])  # doctest: +SKIP
        """
        with self._posterior(num_samples) as posterior:
            structure, pair, draws = posterior
            new = predictive_draws(completed(structure), pair, draws, num_samples)
            groups = {
                "posterior": self._presented(posterior),
                "posterior_predictive": {n: squeezed(structure, n, v) for n, v in new.items()},
                "log_likelihood": _log_likelihood(posterior),
                "observed_data": observed_values(structure, pair),
            }
        return inference_data(groups, structure)

    def summary(self, num_samples: int = _DRAWS) -> pd.DataFrame:
        """A table of posterior means, standard deviations and 94 % intervals, by ArviZ.

        Discrete latents are left out: the mean of a label means nothing. There is no r-hat and no
        effective sample size, since the draws are independent.

        Args:
            num_samples: how many draws; the means are noisy by sd / sqrt(num_samples).
        """
        with self._posterior(num_samples) as posterior:
            structure = posterior.structure
            draws = self._presented(posterior)
        continuous = {n: v for n, v in draws.items() if v.is_floating_point()}
        return posterior_table(inference_data({"posterior": continuous}, structure))

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
            new = Pair(self.job.model, self.job.guide, *_new_arguments(args, kwargs))
            pairs = [(new, 1.0, nullcontext())]
        with self.fitted.applied(), forked_rng():
            table = latent_report(pairs, num_samples)
        for line in collapsed(table):
            warnings.warn(line, stacklevel=2)
        return table

    @contextmanager
    def _posterior(self, num_samples: int) -> Iterator[_Posterior]:
        """Draws of all latents on the whole data set, inside the fitted parameters."""
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be a positive integer, not {num_samples!r}.")
        batch = self.job.source.whole()
        pair = self.job.pair(batch)
        with self.fitted.applied():
            structure = structure_of(pair)
            with threads_for(structure, pair):
                elements = max(1, sum(site.shape.numel() for site in structure.sites.values()))
                at_once = max(1, min(num_samples, _ELEMENTS_AT_ONCE // elements))
                counts = [at_once] * (num_samples // at_once) + [num_samples % at_once]
                chunks = [draw_latents(structure, pair, count) for count in counts if count]
                yield _Posterior(structure, pair, _joined(structure, chunks))

    def _presented(self, posterior: _Posterior) -> Draws:
        """Draws as a person wants them: no auxiliary sites, no singletons, components in order."""
        plain = _plain(posterior)
        relabel = getattr(self.job.model, "relabel", None)
        return plain if relabel is None else relabel(plain)

    def _draws_of(self, sites: Sequence[str], num_samples: int) -> Draws:
        with self._posterior(num_samples) as posterior:
            plain = _plain(posterior)
        return {name: plain[name] for name in sites}

    def _of_rows(self, structure: Structure, name: str) -> bool:
        """Whether the draws belong to rows of the training data (or are these rows' numbers)."""
        rows = self.job.row_plates(structure)
        return name not in structure.sites or not rows.isdisjoint(structure.sites[name].plates)


class _Posterior(NamedTuple):
    """Draws from a fitted program: ``[num_samples, *shape]`` by site, and row numbers by plate."""

    structure: Structure
    pair: Pair
    draws: Draws

    @property
    def num_draws(self) -> int:
        """The number of draws."""
        return next(len(self.draws[name]) for name in self.structure.sites if name in self.draws)


def _new_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as a fit would read them, arrays and tables made tensors."""
    return as_arguments(args, "predict", None)[0], as_arguments(kwargs, "predict", None)[1]


def _plain(posterior: _Posterior) -> Draws:
    """Draws of all sites of the model, components as the guide numbers them."""
    structure, pair, draws = posterior
    draws = {**draws, **deterministic_values(structure, pair, draws, posterior.num_draws)}
    wanted = structure.of_kind("latent", "marginalized", "deterministic")
    return {name: squeezed(structure, name, draws[name]) for name in wanted}


def _joined(structure: Structure, chunks: Sequence[Draws]) -> Draws:
    joined = dict(chunks[0])
    for name in joined:
        if name in structure.sites:
            joined[name] = torch.cat([chunk[name] for chunk in chunks])
    return joined


def _log_likelihood(posterior: _Posterior) -> Draws:
    structure, pair, draws = posterior
    return pointwise_log_likelihood(structure, pair, draws, posterior.num_draws)
