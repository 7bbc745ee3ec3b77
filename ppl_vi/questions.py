"""The questions that a fitted model answers: how probable data are, marginals, conditionals, a mode."""

from __future__ import annotations

from abc import ABC
from typing import Any

from ppl_vi.evidence import LogEvidence, log_evidence
from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters

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
            ``pointwise_standard_error`` (``[rows]`` or None) and ``effective_draws``.

        Raises:
            ValueError: ``num_particles`` is not a positive integer.
            GuideError: the guide holds a latent at a point, which has no weight in an integral.
            ModelError: the model takes a subsample of its own.
            DataError: the new data do not fit the model.

        Warns:
            UserWarning: the weights are so uneven that estimate and error say little.

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
