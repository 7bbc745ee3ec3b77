"""What there is to say about a fit, put together: is it any good?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ppl_vi.counts import check_count
from ppl_vi.diagnostics.calibration import Calibration, calibrate
from ppl_vi.diagnostics.components import component_remarks
from ppl_vi.diagnostics.guide_weights import guide_khat
from ppl_vi.diagnostics.latent_report import latent_report
from ppl_vi.diagnostics.nuts_check import compare_with_nuts
from ppl_vi.diagnostics.pareto import FEWEST_DRAWS, KHat
from ppl_vi.diagnostics.signal_to_noise import signal_to_noise
from ppl_vi.errors import GuideError, ModelError
from ppl_vi.estimate import Estimate
from ppl_vi.stopping.reasons import StopReason
from ppl_vi.sweeping.guides import is_swept

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ppl_vi.result import FitResult

Found = TypeVar("Found")
_GRADIENTS, _DRAWS_OF_KL = 100, 32
_FALSE_ALARMS = 0.01
"""Of all comparisons with NUTS together, from Monte Carlo noise alone."""
_FAR, _WIDE = 0.3, 1.25
"""Shift in standard deviations and ratio of these from which a guide is said to differ from NUTS."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about a fit; printed, a short text.

    Attributes:
        khat: of the guide's importance weights; None where the guide has none.
        convergence: why the fit stopped, in words.
        converged: whether it stopped because the bound rose no more; None where nobody looked.
        elbo: in nats.
        losses: ``[num_steps]``.
        signal: signal and noise of the gradient by parameter; None for exact updates.
        kl: where the bound comes from, by site.
        remarks: of empty, collapsed and duplicate parts, a line each.
        advice: on how the fit stopped, likewise; that a bound was noisy speaks against no fit.
        calibration: where it was asked for.
        nuts: likewise.
        left_out: why something is missing, by its name.
    """

    khat: KHat | None
    convergence: str
    converged: bool | None
    elbo: Estimate
    losses: Tensor = field(repr=False)
    signal: pd.DataFrame | None
    kl: pd.DataFrame | None
    remarks: tuple[str, ...]
    advice: tuple[str, ...]
    calibration: Calibration | None
    nuts: pd.DataFrame | None
    left_out: Mapping[str, str]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the fit, a line each, the heaviest first."""
        lines = []
        if self.khat is not None and not self.khat.usable:
            lines.append(f"k-hat is {self.khat.value}: {self.khat.words}")
        elif self.khat is not None and not self.khat.close_in_bulk:
            lines.append(
                f"the guide is off: its draws are worth {self._effective} of the posterior's, but "
                f"weights correct them (sample(n, reweight=True))"
            )
        if self.converged is False:
            lines.append(f"not converged: {self.convergence}")
        if self.calibration is not None and not self.calibration.passed:
            lines.append(f"calibration: {self.calibration.words}")
        far = _off_nuts(self.nuts)
        if far:
            lines.append(f"off NUTS: {far}")
        return (*lines, *self.remarks)

    @property
    def verdict(self) -> str:
        """All of it in one sentence."""
        if self.doubts:
            more = len(self.doubts) - 1
            also = f" (and {more} more, below)" if more else ""
            near = self.khat is not None and (self.khat.usable or self.khat.close_in_bulk)
            said = "To be used with care" if near and not more else "Not to be trusted as it is"
            return f"{said}: {self.doubts[0].rstrip('.')}{also}."
        if self.khat is None:
            return f"Nothing speaks against it, but there is no k-hat: {self.left_out['khat']}"
        return f"Nothing speaks against it: k-hat is {self.khat.value}, {self.khat.words}."

    @property
    def _effective(self) -> str:
        """How many draws of the posterior those of the guide are worth."""
        khat = self.khat
        if khat is None:
            return ""
        row = "" if khat.pointwise is None else "in the worst row "
        return f"{row}{khat.effective_draws:.0f} of {khat.num_draws}"

    def __str__(self) -> str:
        lines = [self.verdict, f"ELBO: {self.elbo}", f"stopped: {self.convergence}"]
        if self.khat is not None:
            lines.append(f"k-hat: {self.khat}")
            lines.append(f"effective sample size of the weights: {self._effective} draws")
        if self.signal is not None and len(self.signal):
            worst = self.signal["ratio"].idxmax()
            lines.append(
                f"gradients: signal to noise at most {self.signal['ratio'].max():.2f} ('{worst}'; "
                f"0 where a fit has arrived)"
            )
        if self.kl is not None:
            lines.append("KL from the prior: " + (_kl_in_words(self.kl) or "no site has one"))
        if self.calibration is not None:
            lines.append(f"calibration: {self.calibration.words}")
        if self.nuts is not None:
            lines.append(f"NUTS: {_off_nuts(self.nuts) or 'means and widths agree'}")
        lines += [f"remark: {line}" for line in (*self.remarks, *self.advice)]
        lines += [f"no {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """The ELBO, the weights, KL by site and gradients, and what else was asked for."""
        from ppl_vi.diagnostics.diagnosis_picture import plot_diagnosis

        return plot_diagnosis(self)


def diagnose(
    result: FitResult,
    num_draws: int,
    simulations: int,
    nuts_draws: int,
    fit_options: Mapping[str, Any],
    progress: bool,
) -> Diagnosis:
    """Look at a fit from all sides; what cannot be found out is left out, with the reason.

    Args:
        result: of the fit.
        num_draws: for k-hat.
        simulations: data sets for calibration; 0 for none.
        nuts_draws: likewise.
        fit_options: for calibration.
        progress: show progress bars.
    """
    check_count("num_draws", num_draws, least=FEWEST_DRAWS)
    for name, count in (("simulations", simulations), ("nuts_draws", nuts_draws)):
        if count != 0:
            check_count(name, count)
    job, left_out = result.job, dict[str, str]()

    def found(name: str, look: Callable[[], Found]) -> Found | None:
        try:
            return look()
        except (GuideError, ModelError, FloatingPointError) as error:
            left_out[name] = " ".join(str(error).split())
            return None

    with result.fitted.applied():
        khat = found("khat", lambda: guide_khat(job, num_draws))
        signal = None
        if is_swept(job.guide):
            left_out["gradients"] = "exact updates take none."
        else:
            signal = found("gradients", lambda: signal_to_noise(job, _GRADIENTS))
        report = found("KL", lambda: latent_report(job.weighted_pairs(), _DRAWS_OF_KL))
        components = found("components", lambda: component_remarks(job)) or ()
        calibration = nuts = None
        if simulations:
            options = {"steps": max(1, result.num_steps), **fit_options}
            batch = next(job.source.sequence()).size if job.source.batched else None
            calibration = calibrate(
                job.model,
                job.guide,
                job.source,
                simulations=simulations,
                progress=progress,
                **({"batch_size": batch} if batch else {}),
                **options,
            )
        if nuts_draws:
            nuts = found("NUTS", lambda: compare_with_nuts(job, nuts_draws, progress))
    collapses = [] if report is None else report.collapsed()
    advice = () if result.convergence is None else result.convergence.advice
    told = (line for line in result.remarks if line not in advice)
    lines = (*told, *collapses, *components)
    remarks = tuple({line.split(" (")[0]: line for line in lines}.values())  # figures may differ
    words, converged = _convergence(result)
    return Diagnosis(
        khat,
        words,
        converged,
        result.elbo,
        result.losses,
        signal,
        None if report is None else report.table(),
        remarks,
        advice,
        calibration,
        nuts,
        left_out,
    )


def _convergence(result: FitResult) -> tuple[str, bool | None]:
    """Why the fit stopped, and whether that is a good sign; None where it says neither."""
    told = result.stop_reason if result.convergence is None else result.convergence
    good = result.stop_reason in (StopReason.CONVERGED, StopReason.CLOSED_FORM)
    bad = result.stop_reason in (StopReason.CLIMBING, StopReason.INTERRUPTED)
    return str(told), good if good or bad else None


def _off_nuts(table: pd.DataFrame | None) -> str:
    """Where the guide is far from NUTS, beyond its noise; empty where nowhere."""
    if table is None or not len(table):
        return ""
    from scipy.stats import norm  # heavy, and not every fit needs it

    errors = norm.isf(_FALSE_ALARMS / 2 / len(table)) * table["error"]
    shift = (table["shift"].abs() - errors).clip(lower=0)
    ratio = table["width"].where(table["width"] > 1, 1 / table["width"]) / (1 + errors)
    off = (shift > _FAR) | (ratio > _WIDE)
    if not off.any():
        return ""
    worst = int((shift / _FAR).where(shift / _FAR > ratio / _WIDE, ratio / _WIDE).argmax())
    row, (site, number) = table.iloc[worst], table.index[worst]
    label = f"{site}[{number}]" if number else site
    more = f"; {int(off.sum()) - 1} more differ" if off.sum() > 1 else ""
    return (
        f"'{label}' has mean {row['mean']:.3g} and standard deviation {row['sd']:.3g}, against "
        f"{row['nuts_mean']:.3g} and {row['nuts_sd']:.3g}{more}"
    )


def _kl_in_words(table: pd.DataFrame) -> str:
    whole = table.xs("all", level="dimension")["kl"].dropna()
    named = [f"{site} {value:.2f}" for site, value in whole.items()][:6]
    more = f" and {len(whole) - 6} more" if len(whole) > 6 else ""
    return f"{', '.join(named)}{more} nats for each element" if named else ""
