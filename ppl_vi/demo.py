"""The demo: a Bayesian Gaussian mixture on the Old Faithful data."""

from __future__ import annotations

import warnings
from pathlib import Path

from ppl_vi.datasets import old_faithful
from ppl_vi.diagnostics.pictures import elbo_curve, mixture_picture
from ppl_vi.fitting import fit
from ppl_vi.models import BayesianGMM

_DRAWS = 1_000
_LABELS = ("length of the eruption (min)", "wait for the next eruption (min)")


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
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz  # noqa: F401  it announces its next generation once, which is no news here
    data = old_faithful()
    model = BayesianGMM(components, pi="dirichlet", sigma="full")
    print(f"Fitting {components} Gaussian components to {len(data)} eruptions of Old Faithful.")
    result = fit(model, "multivariate_normal", data, steps=steps, seed=seed, progress=progress)

    table = result.summary().to_string()
    print(f"\n{table}\n")
    (folder / "summary.txt").write_text(table + "\n")
    result.to_arviz(_DRAWS).to_netcdf(str(folder / "posterior.nc"))
    elbo_curve(result.losses, result.elbo).savefig(folder / "elbo.png", dpi=130)

    draws = result.sample(_DRAWS)
    scale = draws["sigma"].unsqueeze(-1) * draws["correlation"]
    picture = mixture_picture(
        data, draws["mu"], scale @ scale.mT, draws["pi"], model.responsibilities(draws), _LABELS
    )
    picture.savefig(folder / "mixture.png", dpi=130)

    print(f"ELBO {result.elbo} nats in {result.seconds:.0f} s; {result.stop_reason}.")
    for name, what in _FILES.items():
        print(f"  {folder / name}  {what}")


_FILES = {
    "summary.txt": "the table above",
    "posterior.nc": "the posterior, for arviz.from_netcdf",
    "elbo.png": "the ELBO of each step",
    "mixture.png": "the data with the components",
}
