"""Is a fitted posterior any good: what a result answers about itself."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ppl_vi.diagnostics.diagnosis import Diagnosis, diagnose
from ppl_vi.diagnostics.guide_weights import guide_khat
from ppl_vi.diagnostics.leave_one_out import leave_one_out
from ppl_vi.diagnostics.pareto import KHat
from ppl_vi.job import Job
from ppl_vi.parameters import FittedParameters

if TYPE_CHECKING:
    from ppl_vi.result import FitResult

_DRAWS = 10_000
_DRAWS_TO_LEAVE_OUT = 4_000


class Trust(ABC):
    """What tells whether a fitted posterior is to be relied on."""

    job: Job
    fitted: FittedParameters

    def khat(self, num_draws: int = _DRAWS) -> KHat:
        """How good the guide is as an importance proposal for the posterior: Pareto k-hat.

        The shape of the generalised Pareto distribution that fits the largest weights

            w_k = p(x, z_k) / q(z_k),  z_k ~ q

        Below 0.7 weighted draws correct what the guide gets wrong, below 0.5 it is close; above 0.7 no
        number of draws one can afford does. Minus infinity where all of the largest weights are equal,
        as they are if the guide is the posterior. It says nothing of a mode that no draw came near to,
        and it grows with the number of latents, so that a guide may serve for its means where k-hat is
        above 0.7. It is noisy, by about (1 + k) / √(3 √S): 0.1 near 0.7 for 10,000 draws, and half of
        that for sixteen times as many; printed, it says so, and where that leaves open on which side of
        0.7 it lies.

        Finite discrete latents that the guide leaves out are summed out, and all of ``"cavi"``. Where
        nothing random ties the rows of the data (a variational autoencoder), each has weights of its
        own: ``pointwise`` has the k-hats, of 100 rows from all over the data where these come in
        batches, and the value is the largest. Latents of rows that others are shared beside count
        among those of the one weight that everything has.

        Args:
            num_draws: S. Batches and draws are taken in chunks.

        Returns:
            A float with ``standard_error``, ``words``, ``remedy``, ``doubt``, ``usable``,
            ``effective_draws``, ``pointwise`` and ``log_weights``; printed, it says what it means.

        Raises:
            ValueError: fewer than 25 draws.
            GuideError: the guide holds a latent at a point, which has no weight.
            ModelError: the model takes a subsample of its own.
            FloatingPointError: a weight is not a number.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     level = pyro.sample("level", dist.Normal(0.0, 1.0))
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(level + slope, 0.1), obs=x)
            >>> narrow = fit(model, "normal", torch.ones(20), steps=500, seed=0, progress=False)
            >>> full = fit(model, "multivariate_normal", torch.ones(20), steps=500, seed=0,
            ...            progress=False)
            >>> narrow.khat().usable, full.khat().usable
            (False, True)

        Source: Yao, Vehtari, Simpson and Gelman (2018); Vehtari, Simpson, Gelman, Yao and Gabry (2024).
        """
        with self.fitted.applied():
            return guide_khat(self.job, num_draws)

    def loo(self, site: str | None = None, num_draws: int = _DRAWS_TO_LEAVE_OUT) -> Any:
        """The expected log predictive density of each observation left out, corrected for the guide.

        elpd = Σ_i log Σ_k r_ki p(x_i | z_k) / Σ_k r_ki,  r_ki = p(x, z_k) / (q(z_k) p(x_i | z_k))

        with the r_ki Pareto-smoothed. ``az.loo(result.to_arviz())`` takes the guide's draws for the
        posterior's; here weights correct them, so that it is as good as k-hat says, for each i by
        itself. Discrete latents of a row are summed out; other latents of the row stay, and make it
        influential. Memory grows with draws times observations.

        Args:
            site: the observed site; needed where there are several.
            num_draws: S.

        Returns:
            ArviZ's ``ELPDData`` with pointwise values, which ``az.compare`` takes.

        Raises:
            ValueError: fewer than 25 draws, no such site, or several to choose from.
            GuideError, ModelError, FloatingPointError: as ``khat`` does.

        Warns:
            UserWarning: weights are uneven, with k-hat above 0.7, for some observations.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            >>> x = torch.linspace(-1.0, 1.0, 20)
            >>> result = fit(model, data=x, steps=500, seed=0, progress=False)
            >>> elpd = result.loo()
            >>> round(elpd["p_loo"], 1), elpd["n_data_points"]
            (0.4, 20)

        Source: Magnusson, Andersen, Jonasson and Vehtari (2019).
        """
        with self.fitted.applied():
            return leave_one_out(self.job, site, num_draws)

    def diagnose(
        self,
        num_draws: int = _DRAWS,
        *,
        simulations: int = 0,
        nuts_draws: int = 0,
        fit_options: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> Diagnosis:
        """Is this fit any good: all that can be found out about it, as a short text and a picture.

        K-hat and the effective sample size of the guide's weights, whether the fit had converged, the
        signal in 100 gradients of the ELBO at its end, the KL of each site from its prior, and parts
        that are empty, collapsed or alike. What a guide does not have is left out, with the reason.

        Args:
            num_draws: for k-hat.
            simulations: data sets from the prior for ``calibrate``, each of them fitted with as many
                steps as here; 0 for none, 300 find a shift of half a standard deviation.
            nuts_draws: of a run of NUTS on all rows, to compare means and widths; 0 for none. A few
                hundred will do where the posterior has one mode.
            fit_options: for the fits of the simulated data sets.
            progress: show progress bars of what was asked for.

        Returns:
            A report: ``str()`` is a text, ``verdict`` one sentence, ``doubts`` what speaks against the
            fit, ``plot()`` a figure.

        Raises:
            ValueError: a count is out of range.
            ModelError: the model cannot be simulated.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import fit
            >>> def model(x):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            >>> x = torch.linspace(-1.0, 1.0, 20)
            >>> result = fit(model, data=x, steps=2_000, seed=0, progress=False)
            >>> report = result.diagnose(progress=False)
            >>> report.khat.usable, report.doubts
            (True, ())
        """
        result = cast("FitResult", self)
        return diagnose(result, num_draws, simulations, nuts_draws, fit_options or {}, progress)

    def report(self, path: str | Path, **options: Any) -> Diagnosis:
        """Write a page about this fit: the diagnosis with its pictures, the summary, the settings.

        One HTML file without scripts and links, pictures in it, readable on a phone.

        Args:
            path: of the file.
            **options: of ``diagnose``.

        Returns:
            The diagnosis.

        Raises:
            ValueError, ModelError: as ``diagnose`` does.

        Example:
            >>> result.report("report.html")  # doctest: +SKIP
        """
        from ppl_vi.diagnostics.page import write_page  # pictures take a second to import

        result = cast("FitResult", self)
        diagnosis = result.diagnose(**options)
        write_page(Path(path), result, diagnosis)
        return diagnosis
