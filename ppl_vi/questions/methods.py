"""The questions that a fitted model answers: how probable data are, marginals, conditionals, a mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters
from ppl_vi.preparation import structure_of
from ppl_vi.questions.checks import check_names
from ppl_vi.questions.conditioning import condition
from ppl_vi.questions.evidence import LogEvidence, log_evidence
from ppl_vi.questions.marginals import Marginal, find_marginal
from ppl_vi.questions.maximizing import joint_mode
from ppl_vi.sweeping.guides import is_swept

if TYPE_CHECKING:
    from ppl_vi.result import FitResult

_PARTICLES = 1_000


class Questions(ABC):
    """What can be asked of a fitted posterior, beyond draws of it."""

    job: Job
    fitted: FittedParameters

    def log_evidence(self, num_particles: int = _PARTICLES, data: Any = None) -> LogEvidence:
        """The log evidence of data, by importance weights of the guide's draws.

        log p(x) ≈ log (1/K) Σ_k p(x, z_k) / q(z_k)

        For models whose latents are all of rows (a variational autoencoder) each row has K draws of its
        own, and ``pointwise`` its log p(x_i). Rows that depend on each other through shared latents
        alone have √K draws for each of K draws of these. Finite discrete latents that the guide leaves
        out, and all of ``"cavi"``, are summed out exactly; parameters of the model have their fitted
        values. Particles and the batches of the fit are taken in chunks, so that memory grows with
        neither.

        New ``data`` without shared latents have log p(x*) as well. With shared latents it is the
        log predictive density log p(x* | x) of all new rows together, the guide's draws standing for
        the posterior, and ``pointwise`` has that of each row by itself, which do not add up to it.
        Latents of new rows are proposed by the guide where it reads them off the data (an encoder),
        else by Normals fitted to these rows. ``quantity`` says which of the two was estimated.

        Too low on average, by about half of the squared standard error, which is found from the spread
        of the weights (delta method); p(x) itself is estimated without bias. What no draw came near to,
        a mode that the guide has missed, shows in neither.

        Args:
            num_particles: K.
            data: new data, as ``fit`` takes them; None for those of the fit.

        Returns:
            A float in nats, with ``standard_error``, ``quantity``, ``pointwise``,
            ``pointwise_standard_error`` (``[rows]`` or None), ``effective_draws`` and ``khat``.

        Raises:
            ValueError: ``num_particles`` is not a positive integer.
            GuideError: the guide holds a latent at a point, which has no weight in an integral.
            ModelError: the model takes a subsample of its own.
            DataError: the new data do not fit the model.

        Warns:
            UserWarning: the weights are so uneven, or so heavy-tailed, that estimate and error say
                little.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     with pyro.plate("data", len(x)):
            ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
            ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            >>> def guide(x):
            ...     slope = pyro.param("slope", torch.tensor(0.5))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))
            >>> result = fit(model, guide, torch.zeros(3), steps=50, seed=0, progress=False)
            >>> new = result.log_evidence(100, data=torch.tensor([1.0, -1.0]))  # Normal(0, √2)
            >>> print(f"{new:.1f}", new.quantity, tuple(new.pointwise.shape))
            -3.0 log p(x*) (2,)

        Source: Burda, Grosse and Salakhutdinov (2016); Vehtari, Gelman and Gabry (2017), for predictive
        densities.
        """
        with self.fitted.applied():
            return log_evidence(self.job, num_particles, data)

    def marginal(self, sites: str | Sequence[str]) -> Marginal:
        """The joint posterior of some sites, all others integrated out.

        In closed form where the guide has it: sites that are jointly Gaussian before the transforms to
        their supports (mean-field, full-rank and low-rank guides), sites that it draws from a
        distribution of their own, and each factor of ``"cavi"`` by itself. Else draws of the whole
        guide stand for it, without a density. It is the guide's marginal: as far from the true one as
        the fit is.

        Args:
            sites: names of latents, or of deterministic sites; one named twice counts once.

        Returns:
            A distribution with ``sample(n)``, ``log_prob(values)``, ``mean``, ``covariance``,
            ``distributions`` (Pyro's, by site) and ``exact``.

        Raises:
            ValueError: the model has no such latent.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     level = pyro.sample("level", dist.Normal(0.0, 1.0))
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(level + slope, 1.0), obs=x)
            >>> x = torch.ones(8)
            >>> result = fit(model, "multivariate_normal", x, steps=500, seed=0, progress=False)
            >>> both = result.marginal(["level", "slope"])
            >>> both.exact, tuple(both.covariance.shape), bool(both.covariance[0, 1] < -0.2)
            (True, (2, 2), True)
            >>> type(result.marginal("slope").distributions["slope"]).__name__
            'Normal'
        """
        names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
        pair = self.job.pair(self.job.source.whole())
        with self.fitted.applied():
            structure = structure_of(pair)
            known = structure.of_kind("latent", "marginalized", "deterministic")
            check_names("marginal", names, known, "latents of the model")
            if not names:
                raise ValueError("marginal: no site is named. Name one latent or more.")
            factors = self.job.guide.factors() if is_swept(self.job.guide) else {}
            return find_marginal(structure, pair, names, partial(self._draws_of, names), factors)

    def conditional(
        self, observed: Mapping[str, Any], guide: Any = None, **options: Any
    ) -> FitResult:
        """The posterior of the other sites, given values of some: observe some, infer the rest.

        p(rest | observed, x)

        Where the guide is jointly Gaussian before the transforms to the supports, and the sites depend
        on each other in it, that is its conditional, in closed form and without a step: exact for the
        guide, and kept if 200 of its draws have 20 effective ones under the model. A guide that draws
        them independently (mean field) can't tell, and neither can one of another family, or one whose
        conditional does not hold so far out: the model is then fitted once more with the values
        observed, by a guide of the same family (one of your own writing is replaced by
        ``"multivariate_normal"``, or ``"normal"`` for more than 200 numbers). ``stop_reason`` says
        which of the two it was, and ``elbo`` beside ``log_evidence()`` how far it is from exact.
        Parameters of the model are held at their fitted values.

        Args:
            observed: values of latents by site, ``[*plates, *event]``, and None for a site of the data
                that is to be inferred with the rest.
            guide: for a new fit, in any case; as ``fit`` takes it.
            **options: of ``fit`` for a new fit, in any case.

        Returns:
            The posterior given the values, which answers all that this one does.

        Raises:
            ValueError: a site is not the model's, a value does not fit its site, or nothing is left.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     level = pyro.sample("level", dist.Normal(0.0, 1.0))
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(level + slope, 1.0), obs=x)
            >>> x = torch.ones(8)
            >>> result = fit(model, "multivariate_normal", x, steps=500, seed=0, progress=False)
            >>> given = result.conditional({"slope": torch.tensor(1.0)})
            >>> print(given.stop_reason)
            the posterior was found in closed form from a fitted one
            >>> abs(given.marginal("level").mean["level"].item()) < 0.2
            True

        Source: Bishop (2006), section 2.3.1, for Gaussians.
        """
        with self.fitted.applied():
            return condition(self.job, observed, guide, options)

    def mode(self) -> dict[str, Tensor]:
        """A joint mode of the posterior: where its density is highest, of all continuous latents.

        argmax_z log p(x, z),  discrete latents summed out

        By L-BFGS from the best of the guide's draws, in coordinates that these draws whiten, with the
        parameters of the model at their fitted values. The density is that on the sites' own supports
        (what MAP estimates maximise), without the Jacobian of a transform: in other coordinates the
        mode is elsewhere. It is a local mode, and with many latents far from where draws are.

        Returns:
            ``[*plates, *event]`` by site. A maximum on the edge of a support is met to rounding.

        Raises:
            ModelError: no maximum was found, as where the density has no bound; the model has no
                continuous latent; a discrete latent cannot be summed out; or the model takes a
                subsample of its own.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Poisson(rate), obs=x)
            >>> result = fit(model, data=torch.ones(20), steps=50, progress=False)
            >>> round(result.mode()["rate"].item(), 2)  # (2 + 20 - 1) / (1 + 20)
            1.0

        Source: Nocedal and Wright (2006), chapter 7.
        """
        pair = self.job.pair(self.job.source.whole())
        with self.fitted.applied():
            return joint_mode(pair)

    @abstractmethod
    def _draws_of(self, sites: Sequence[str], num_samples: int) -> dict[str, Tensor]:
        """Posterior draws of some sites, components as the guide numbers them."""
