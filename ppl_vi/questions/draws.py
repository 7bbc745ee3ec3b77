"""What a fit gives by draws from its posterior: samples, predictions, tables and data for ArviZ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vi.arguments import as_arguments
from ppl_vi.data import data_source
from ppl_vi.diagnostics import inference_data, posterior_table
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters
from ppl_vi.preparation import structure_of
from ppl_vi.program import (
    Structure,
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
from ppl_vi.questions.predictions import (
    LocalLatents,
    NewData,
    Prediction,
    replicated,
    states_of,
)
from ppl_vi.sweeping import marginalized

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ppl_vi.stopping import StopReason

_DRAWS = 1_000


class PosteriorDraws(ABC):
    """What draws from a fitted posterior tell."""

    job: Job
    fitted: FittedParameters
    losses: Tensor
    elbo: Estimate
    stop_reason: StopReason

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

    def predict(
        self,
        *args: Any,
        num_samples: int = _DRAWS,
        local_latents: LocalLatents = "auto",
        **kwargs: Any,
    ) -> Prediction:
        """Draw new observations from the posterior predictive distribution.

        p(x* | x) = ∫ p(x* | z*, u) q(z* | x*, u) q(u) dz* du,  u shared by all rows, z* of a row

        Without arguments the training data are replicated, given all latents. With arguments the
        model is run on them, on any number of rows: latents outside of rows come from the posterior.
        Those of new rows are inferred where the new rows have observed values: by a guide that reads
        the data (an encoder), else by Normals fitted to these rows; finite discrete ones have their
        exact conditional. So the draws replicate the new rows. Where nothing is observed (``y=None``),
        or with ``local_latents="prior"``, they come from the model: new rows that nobody has seen.
        ``prediction.local_latents`` says which it was.

        Args:
            *args: the model's arguments; none for the training data.
            num_samples: how many draws.
            local_latents: ``"auto"`` or ``"prior"``.
            **kwargs: the model's keyword arguments.

        Returns:
            A dict, ``[num_samples, *plates, *event]`` by site: observed and held-out sites, latents of
            rows and deterministic sites.

        Raises:
            ModelError, DataError: the model does not run on the new data.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
            >>> x = torch.linspace(-1, 1, 20)
            >>> result = fit(model, data=(x, 2 * x), steps=50, progress=False)
            >>> result.predict(torch.ones(3), num_samples=100)
            Prediction(y: [100, 3])
        """
        _check_draws(num_samples)
        with self.fitted.applied():
            if not (args or kwargs):
                prediction = replicated(Posterior(self.job), num_samples)
                return self._answers(prediction, list(prediction), prediction.local_latents)
            new_args, new_kwargs = new_arguments(args, kwargs, self.job)
            new = NewData(self.job, new_args, new_kwargs, local_latents)
            return self._answers(*new.predicted(num_samples), new.local_latents)

    def responsibilities(
        self, site: str | None = None, data: Any = None, num_samples: int = _DRAWS
    ) -> Tensor:
        """The posterior probabilities of the states of a discrete latent: cluster memberships, say.

        q(z_i = k) = E_q(θ)[p(z_i = k | x, θ)]

        A latent that was summed out has its exact conditional at each draw of the others, one that the
        guide draws the guide's own probabilities; the mean is over draws, and noisy by at most
        0.5 / sqrt(num_samples). Components are numbered as in ``sample``.

        Args:
            site: its name; None where there is only one.
            data: new rows, as ``fit`` takes them; None for those of the fit.
            num_samples: how many draws of the other latents.

        Returns:
            ``[*plates, states]``.

        Raises:
            ValueError: the model has no such discrete latent, or several and none is named.
            DataError: nothing is observed in the new rows.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     mean = pyro.sample("mean", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
            ...     with pyro.plate("data", len(x)):
            ...         z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            ...         pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)
            >>> x = torch.tensor([-3.0, -2.5, 2.5, 3.0])
            >>> result = fit(model, data=x, steps=50, seed=0, progress=False)
            >>> result.responsibilities(data=torch.tensor([4.0])).round()
            tensor([[0., 1.]])
        """
        _check_draws(num_samples)
        with self.fitted.applied():
            posterior = Posterior(self.job)
            name = _discrete(posterior.structure, site)
            if data is None:
                found = posterior.collect(
                    num_samples, lambda drawn: {"states": {name: states_of(drawn, name)}}
                )
                states = found["states"][name].mean(0)
            else:
                batch = data_source(data, device=self.job.device).whole()
                states = NewData(self.job, batch.args, batch.kwargs).probabilities(
                    name, num_samples
                )
        return self._states_relabelled(states, name)

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
        _check_draws(num_samples)

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
        _check_draws(num_samples)
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
        averaged_from = getattr(getattr(self, "convergence", None), "step", None)
        return fit_picture(self.losses, self.elbo, str(self.stop_reason), averaged_from, draws)

    @abstractmethod
    def _attributes(self) -> dict[str, Any]:
        """What is known of the fit, in words and numbers that a file can hold."""

    def _plain_draws(self, num_samples: int) -> Draws:
        """Draws of all sites of the model, components as the guide numbers them."""
        _check_draws(num_samples)
        with self.fitted.applied():
            groups = Posterior(self.job).collect(
                num_samples, lambda drawn: {"posterior": _plain(drawn)}
            )
        return groups["posterior"]

    def _reweighted(self, num_samples: int) -> Draws:
        """Draws that importance weights correct."""
        from ppl_vi.diagnostics.reweighting import reweighted  # it asks questions itself

        _check_draws(num_samples)
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

    def _answers(
        self, draws: Draws, names: Sequence[str], local_latents: Mapping[str, str]
    ) -> Prediction:
        relabelled = self._relabelled(draws)
        return Prediction({name: relabelled[name] for name in names}, local_latents)

    def _states_relabelled(self, states: Tensor, name: str) -> Tensor:
        """``[*plates, states]`` in the model's own order of components."""
        if getattr(self.job.model, "relabel", None) is None:
            return states
        draws = self._plain_draws(_DRAWS)
        numbers = torch.arange(states.shape[-1], device=draws[name].device).to(draws[name].dtype)
        draws[name] = numbers.expand(len(draws[name]), -1)
        order = self._relabelled(draws)[name][0].long()  # the new number of each state
        return states[..., order.argsort()]

    def _draws_of(self, sites: Sequence[str], num_samples: int) -> Draws:
        plain = self._plain_draws(num_samples)
        return {name: plain[name] for name in sites}


def new_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], job: Job
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as a fit would read them: arrays and tables as tensors, where its data are."""
    positional = as_arguments(args, "predict", job.device)[0]
    return positional, as_arguments(kwargs, "predict", job.device)[1]


def _check_draws(num_samples: Any) -> None:
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, not {num_samples!r}.")


def _plain(drawn: Drawn) -> Draws:
    """Draws of all sites of the model, without the dimensions in between."""
    structure, pair, values, count = drawn[:4]
    values = {**values, **deterministic_values(structure, pair, values, count)}
    wanted = structure.of_kind("latent", "marginalized", "deterministic")
    return {name: squeezed(structure, name, values[name]) for name in wanted}


def _discrete(structure: Structure, site: str | None) -> str:
    """The discrete latent that is asked for."""
    names = [
        name
        for name in structure.of_kind("latent", "marginalized")
        if structure.sites[name].enumerable and not structure.sites[name].event_dim
    ]
    listed = ", ".join(f"'{name}'" for name in names) or "none"
    if site is None and len(names) == 1:
        return names[0]
    if site is None or site not in names:
        asked = "no site is named" if site is None else f"'{site}' is none of them"
        raise ValueError(
            f"responsibilities: {asked}; the discrete latents of the model with a finite support are: "
            f"{listed}. Name one of these."
        )
    return site
