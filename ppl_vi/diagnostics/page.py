"""A diagnosis as one page that stands by itself."""

from __future__ import annotations

import base64
import io
import platform
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment
from matplotlib.figure import Figure

from ppl_vi.diagnostics.diagnosis_picture import Panel, panels
from ppl_vi.diagnostics.pictures import style
from ppl_vi.running import in_words

if TYPE_CHECKING:
    import pandas as pd

    from ppl_vi.diagnostics.diagnosis import Diagnosis
    from ppl_vi.result import FitResult

_MOST_ROWS = 60
_PACKAGES = ("ppl-vi", "pyro-ppl", "torch", "arviz")


@dataclass
class Section:
    """A part of the page: words, a picture as base64, a table as HTML, and a remark on it."""

    title: str
    lines: tuple[str, ...] = ()
    picture: str = ""
    table: str = ""
    note: str = ""


def write_page(path: Path, result: FitResult, diagnosis: Diagnosis) -> None:
    """Write the page.

    Args:
        path: of the file.
        result: of the fit.
        diagnosis: what was found.
    """
    text = resources.files("ppl_vi.diagnostics").joinpath("report.html").read_text("utf-8")
    model = getattr(result.job.model, "__name__", type(result.job.model).__name__)
    page = Environment(autoescape=True).from_string(text)
    written = page.render(
        title=f"Fit of {model}",
        verdict=diagnosis.verdict,
        doubts=diagnosis.doubts,
        sections=_sections(result, diagnosis),
        settings=_settings(result),
    )
    path.write_text(written, "utf-8")


def _sections(result: FitResult, diagnosis: Diagnosis) -> list[Section]:
    pictures = {title: _drawn(panel) for title, panel in panels(diagnosis).items()}
    left_out = diagnosis.left_out
    steps = f"{diagnosis.elbo} nats after {result.num_steps} steps."
    made = [
        Section(
            "ELBO",
            (steps, _sentence(diagnosis.convergence), *map(_sentence, diagnosis.advice)),
        ),
        Section("Importance weights", _of_weights(diagnosis)),
    ]
    kl = diagnosis.kl
    reason = (left_out["KL"],) if "KL" in left_out else ()
    made.append(Section("KL from the prior", reason, table=_html(kl)))
    reason = (f"None: {left_out['gradients']}",) if "gradients" in left_out else ()
    made.append(
        Section(
            "Gradients",
            reason,
            table=_html(diagnosis.signal),
            note="Signal to noise of the ELBO's gradient; 0 where a fit has arrived.",
        )
    )
    if diagnosis.calibration is not None:
        table = _html(diagnosis.calibration.table)
        made.append(Section("Calibration", (_sentence(diagnosis.calibration.words),), table=table))
    if diagnosis.nuts is not None or "NUTS" in left_out:
        reason = (left_out["NUTS"],) if "NUTS" in left_out else ()
        made.append(Section("Beside NUTS", reason, table=_html(diagnosis.nuts)))
    for section in made:
        section.picture = pictures.get(section.title, "")
    made.append(Section("Posterior", table=_html(result.summary())))
    return made


def _of_weights(diagnosis: Diagnosis) -> tuple[str, ...]:
    khat = diagnosis.khat
    if khat is None:
        return (f"No k-hat: {diagnosis.left_out['khat']}",)
    effective = f"{khat.effective_draws:.0f} of {khat.num_draws}"
    of_row = " of the worst row" if khat.pointwise is not None else ""
    return f"K-hat{of_row}: {khat}.", f"The weights say as much as {effective} equal ones{of_row}."


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _html(table: pd.DataFrame | None) -> str:
    """A table, of its first rows."""
    if table is None:
        return ""
    html: str = table.head(_MOST_ROWS).to_html(border=0, na_rep="", float_format="{:.3g}".format)
    more = len(table) - _MOST_ROWS
    return html + (f'<p class="note">and {more} more rows</p>' if more > 0 else "")


def _drawn(panel: Panel) -> str:
    """A picture as base64."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    style(axes)
    panel(axes)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return base64.b64encode(held.getvalue()).decode()


def _settings(result: FitResult) -> dict[str, str]:
    rows = result.job.source.num_rows
    guide = result.job.guide
    settings = {
        "guide": getattr(guide, "__name__", type(guide).__name__),
        "rows of data": "none" if rows is None else f"{rows:,}",
        "steps": f"{result.num_steps:,} in {result.seconds:.1f} s, {result.execution.mode}",
        "stopped because": str(result.stop_reason),
        "estimators": in_words(result.estimators) or "none",
        "Python": platform.python_version(),
    }
    return settings | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its source
        return "from source"
