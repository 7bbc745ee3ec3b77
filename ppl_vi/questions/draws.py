"""What a fit gives by draws from its posterior: samples, predictions, tables and data for ArviZ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.diagnostics import inference_data, posterior_table
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters
from ppl_vi.preparation import structure_of
from ppl_vi.program import (
    deterministic_values,
    pointwise_log_likelihood,
    squeezed,
)
from ppl_vi.questions.exporting import (
    answered,
    data_groups,
    named,
    prior_groups,
    steps,
)
from ppl_vi.questions.posterior import Drawn, Draws, Posterior
from ppl_vi.sweeping.guides import marginalized

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ppl_vi.stopping.reasons import Convergence, StopReason

_DRAWS = 1_000


class PosteriorDraws(ABC):
    """What draws from a fitted posterior tell."""

    job: Job
    fitted: FittedParameters
    losses: Tensor
    elbo: Estimate
    stop_reason: StopReason
    convergence: Convergence | None

    def sample(self, num_samples: int = _DRAWS, reweight: bool = False) -> Draws:
        """Draw from the posterior: every latent, summed-out discrete and deterministic sites too.

        Discrete latents that were summed out are drawn from their exact conditional given the other
        latents. A model with ``relabel(draws)`` puts exchangeable components into its own order.

        Args:
            num_samples: how many independent draws.
            reweight: resample 10,000 draws of the guide by their Pareto-smoothed importance weights,
                which corrects it where k-hat is below 0.7, and warn where not. Some are then the same:
                ``num_distinct`` of the dict says how many differ, ``khat`` how good the weights are.

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
        if reweight:
            return self._reweighted(num_samples)
        return self._relabelled(self._plain_draws(num_samples))

    def log_likelihood(self, num_samples: int = _DRAWS) -> Draws:
        """The pointwise log-likelihood log p(x_i | draw) in nats, at posterior draws.

        Neither scaled nor subsampled. Discrete latents that were summed out in the fit are summed out
        here, where one observed site alone depends on them. Draws are taken in chunks, and the rows of
        a fit on minibatches too, so that memory does not grow with them beyond the answer's own.

        Args:
            num_samples: how many draws.

        Returns:
            ``[num_samples, *plates]`` by observed site.
        """
        check_count("num_samples", num_samples)

        def answer(drawn: Drawn) -> dict[str, Draws]:
            structure, pair, values, count = drawn[:4]
            return {"points": pointwise_log_likelihood(structure, pair, values, count)}

        with self.fitted.applied():
            return Posterior(self.job).collect(num_samples, answer).get("points", {})

    def to_arviz(
        self,
        num_samples: int = _DRAWS,
        *,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The fit for ArviZ, whole.

        Groups: ``posterior``, ``posterior_predictive``, ``log_likelihood`` (pointwise, neither scaled
        nor subsampled) and ``sample_stats`` (``lp`` log p(x, z) and ``log_q`` log q(z) of each draw,
        latents that are summed out in neither; ``bound`` of each step) are of the same independent
        draws, which make one chain. ``prior`` and ``prior_predictive`` are draws of the model alone,
        at its fitted parameters; improper priors have none. ``observed_data`` and ``constant_data``
        are the data, the latter by the names of the model's arguments. Attributes say which library,
        guide, objective, estimators and seed, and why the fit stopped.

        Args:
            num_samples: how many draws.
            coords: labels of dimensions by their name; others are numbered from 0.
            dims: names of all dimensions of a site, by site; by default its plates, then
                ``site_dim_0`` and so on for the event.

        Returns:
            ``arviz.InferenceData``, or an ``xarray.DataTree`` with ArviZ 1.x.

        Raises:
            ValueError: ``coords`` or ``dims`` do not fit a site; the message names it and its shape.

        Warns:
            UserWarning: the model fails on draws from its prior, which is then left out.

        Example:
            >>> idata = result.to_arviz(coords={"schools": names})  # doctest: +SKIP
            >>> az.plot_forest(idata, var_names=["theta"])  # doctest: +SKIP
        """
        check_count("num_samples", num_samples)
        with self.fitted.applied():
            posterior = Posterior(self.job)
            groups = posterior.collect(num_samples, lambda drawn: answered(drawn, _plain))
            groups["posterior"] = self._relabelled(groups["posterior"])
            groups |= data_groups(posterior) | prior_groups(posterior, num_samples)
            structure = posterior.structure
            rows = sorted(self.job.row_plates(structure))
        variables = named(groups, structure, rows[0] if len(rows) == 1 else None, dims or {})
        variables["sample_stats"]["bound"] = steps(self.losses)
        return inference_data(variables, coords or {}, self._attributes())

    def summary(self, num_samples: int = _DRAWS, reweight: bool = False) -> pd.DataFrame:
        """A table of posterior means, standard deviations and 94 % intervals, by ArviZ.

        Discrete latents are left out: the mean of a label means nothing (``responsibilities`` tells of
        them). There is no r-hat and no effective sample size, since the draws are independent.

        Args:
            num_samples: how many draws; the means are noisy by sd / sqrt(num_samples).
            reweight: of draws that importance weights correct, as in ``sample``.
        """
        draws = self.sample(num_samples, reweight)
        continuous = {n: v for n, v in draws.items() if v.is_floating_point()}
        with self.fitted.applied():
            structure = Posterior(self.job).structure
        return posterior_table(named({"posterior": continuous}, structure, None, {}))

    def plot(self, num_samples: int = _DRAWS) -> Figure:
        """A picture of the fit: the ELBO of each step, where it stopped, and the marginals.

        Sites with few elements are densities, those with many are means and 94 % intervals by element;
        sites beyond the first eight are named below. Discrete latents are left out.

        Args:
            num_samples: draws for the marginals.

        Returns:
            A Matplotlib figure of its own; ``figure.savefig("fit.png")`` keeps it.

        Example:
            >>> result.plot().savefig("fit.png")  # doctest: +SKIP
        """
        from ppl_vi.diagnostics.fit_picture import fit_picture  # heavy, and not every fit needs it

        draws = {n: v for n, v in self.sample(num_samples).items() if v.is_floating_point()}
        averaged_from = None if self.convergence is None else self.convergence.step
        return fit_picture(self.losses, self.elbo, str(self.stop_reason), averaged_from, draws)

    @abstractmethod
    def _attributes(self) -> dict[str, Any]:
        """What is known of the fit, in words and numbers that a file can hold."""

    def _plain_draws(self, num_samples: int) -> Draws:
        """Draws of all sites of the model, components as the guide numbers them."""
        check_count("num_samples", num_samples)
        with self.fitted.applied():
            groups = Posterior(self.job).collect(
                num_samples, lambda drawn: {"posterior": _plain(drawn)}
            )
        return groups["posterior"]

    def _reweighted(self, num_samples: int) -> Draws:
        """Draws that importance weights correct."""
        from ppl_vi.diagnostics.reweighting import reweighted  # it asks questions itself

        check_count("num_samples", num_samples)
        job = marginalized(self.job)
        pair = job.pair(job.source.whole())
        with self.fitted.applied():
            draws = reweighted(job, num_samples)
            drawn = Drawn(structure_of(pair), pair, draws, num_samples, frozenset())
            return draws.like(self._relabelled(_plain(drawn)))

    def _relabelled(self, draws: Draws) -> Draws:
        """Exchangeable components in the model's own order, where it has one."""
        relabel = getattr(self.job.model, "relabel", None)
        return draws if relabel is None else relabel(draws)

    def _draws_of(self, sites: Sequence[str], num_samples: int) -> Draws:
        plain = self._plain_draws(num_samples)
        return {name: plain[name] for name in sites}


def _plain(drawn: Drawn) -> Draws:
    """Draws of all sites of the model, without the dimensions in between."""
    structure, pair, values, count = drawn[:4]
    values = {**values, **deterministic_values(structure, pair, values, count)}
    wanted = structure.of_kind("latent", "marginalized", "deterministic")
    return {name: squeezed(structure, name, values[name]) for name in wanted}
