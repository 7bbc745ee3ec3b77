"""The demo: a Bayesian Gaussian mixture on the Old Faithful data."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ppl_vi.datasets import old_faithful
from ppl_vi.diagnostics.pictures import elbo_curve, mixture_picture
from ppl_vi.fitting import fit
from ppl_vi.models import BayesianGMM
from ppl_vi.randomness import forked_rng

_DRAWS = 1_000
_DPI = 130
_LABELS = ("length of the eruption (min)", "wait for the next eruption (min)")
_NOTE = """\
mu, sigma [component, dimension]: minutes; dimension 0 is the eruption, 1 the wait for the next.
correlation[k, 1, 0]: the correlation of the two within component k."""
_FILES = {
    "summary.txt": "the table above",
    "posterior.nc": "the posterior, for arviz.from_netcdf",
    "elbo.png": "the ELBO of each step",
    "mixture.png": "the data with the components",
}
Drawn = TypeVar("Drawn")


def run_demo(folder: Path, components: int, steps: int, seed: int, progress: bool) -> None:
    """Fit the mixture, print its summary, and write tables and pictures.

    Args:
        folder: where the files go; made if need be.
        components: of the mixture.
        steps: gradient steps.
        seed: for everything random.
        progress: show a progress bar.

    Raises:
        DataError: there are fewer distinct eruptions than components.
        OSError: the folder cannot be written; found out before the fit.
    """
    make_writable(folder)
    _import_arviz()
    data = old_faithful()
    model = BayesianGMM(components, pi="dirichlet", sigma="full")
    print(f"Fitting {components} Gaussian components to {len(data)} eruptions of Old Faithful.")
    result = fit(model, "multivariate_normal", data, steps=steps, seed=seed, progress=progress)

    def drawn(draw: Callable[[int], Drawn]) -> Drawn:
        """On the same random state each time: table, file and picture show the same draws."""
        with forked_rng(seed):
            return draw(_DRAWS)

    table = f"{drawn(result.summary).to_string()}\n\n{_NOTE}\n"
    print(f"\n{table}")
    (folder / "summary.txt").write_text(table)
    drawn(result.to_arviz).to_netcdf(str(folder / "posterior.nc"))
    elbo_curve(result.losses, result.elbo).savefig(folder / "elbo.png", dpi=_DPI)

    draws = drawn(result.sample)
    scale = draws["sigma"].unsqueeze(-1) * draws["correlation"]
    picture = mixture_picture(
        data, draws["mu"], scale @ scale.mT, draws["pi"], model.responsibilities(draws), _LABELS
    )
    picture.savefig(folder / "mixture.png", dpi=_DPI)

    print(f"ELBO {result.elbo} nats in {result.seconds:.0f} s; {result.stop_reason}.")
    for name, what in _FILES.items():
        print(f"  {folder / name}  {what}")


def make_writable(folder: Path) -> None:
    """Fail now rather than after the fit."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _import_arviz() -> None:
    """It announces its next generation once, at import, which is no news here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz  # noqa: F401
