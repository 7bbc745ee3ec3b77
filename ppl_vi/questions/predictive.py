"""What a fit predicts: new observations, and the states of discrete latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.data.arguments import as_arguments
from ppl_vi.data.sources import data_source
from ppl_vi.job import Job
from ppl_vi.program import Structure
from ppl_vi.questions.draws import PosteriorDraws
from ppl_vi.questions.posterior import Draws, Posterior
from ppl_vi.questions.predictions import (
    LocalLatents,
    NewData,
    Prediction,
    replicated,
    states_of,
)

_DRAWS = 1_000


class PredictiveDraws(PosteriorDraws):
    """What draws from a fitted posterior tell of observations, new ones too."""

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
        check_count("num_samples", num_samples)
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
        check_count("num_samples", num_samples)
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


def new_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], job: Job
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as a fit would read them: arrays and tables as tensors, where its data are."""
    positional = as_arguments(args, "predict", job.device)[0]
    return positional, as_arguments(kwargs, "predict", job.device)[1]


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
