"""The posterior of the Old Faithful mixture by NumPyro's NUTS: a reference for variational fits.

Two components with full covariances, pi ~ Dirichlet(1), tau = 50, sigma ~ HalfCauchy(1), labels
summed out. The components of a draw are ordered by their mean eruption.

Usage: python -m benchmarks.nuts_faithful [--data CSV] [--out JSON] [--draws N] [--warmup N]
"""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_value

TWINS = Path(__file__).parents[1] / "tests" / "numpyro_twins.py"
SETTINGS = {"num_components": 2, "tau": 50.0, "pi": "dirichlet", "sigma": "full", "spread": 1.0}
START = {
    "pi": [0.36, 0.64],
    "mu": [[2.0, 54.0], [4.3, 80.0]],
    "sigma": [[0.3, 6.0], [0.4, 6.0]],
}


def main() -> None:
    """Run the chains, print a table and write the JSON file."""
    options = _options()
    jax.config.update("jax_enable_x64", True)
    with options.data.open() as file:
        data = np.loadtxt(file, delimiter=",", skiprows=1)
    started = time.perf_counter()
    draws, divergences = sample(data, options)
    seconds = time.perf_counter() - started
    sites = {name: summary(value) for name, value in ordered(draws).items()}
    show(sites)
    print(f"{divergences} divergences, {seconds:.0f} s")
    if options.out is not None:
        report = {
            "model": {**SETTINGS, "concentration": 1.0, "order": "by eruptions, draw by draw"},
            "settings": {
                "sampler": "NUTS",
                "chains": options.chains,
                "warmup": options.warmup,
                "draws_per_chain": options.draws,
                "seed": options.seed,
                "dtype": "float64",
                "divergences": divergences,
                "seconds": round(seconds, 1),
            },
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("numpyro", "jax", "numpy")},
            },
            "sites": sites,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = importlib.resources.files("ppl_vi.datasets") / "faithful.csv"
    parser.add_argument("--data", type=Path, default=shipped)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=5_000)
    parser.add_argument("--warmup", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def sample(data: np.ndarray, options: argparse.Namespace) -> tuple[dict[str, np.ndarray], int]:
    """``[chains, draws, *site]`` by site, and the number of divergences."""
    spec = importlib.util.spec_from_file_location("numpyro_twins", TWINS)
    twins = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twins)
    program = twins.gmm(**SETTINGS, summed_out=True)
    start = {name: np.array(value) for name, value in START.items()}
    kernel = NUTS(program, init_strategy=init_to_value(values=start))
    chains = MCMC(
        kernel,
        num_warmup=options.warmup,
        num_samples=options.draws,
        num_chains=options.chains,
        chain_method="sequential",
        progress_bar=False,
    )
    chains.run(jax.random.PRNGKey(options.seed), data, extra_fields=("diverging",))
    draws = {name: np.asarray(v) for name, v in chains.get_samples(group_by_chain=True).items()}
    return draws, int(chains.get_extra_fields()["diverging"].sum())


def ordered(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every draw's components by eruptions; the correlation as a number."""
    factor = draws["correlation"]
    values = {name: draws[name] for name in ("mu", "pi", "sigma")}
    values["correlation"] = factor[..., 1, 0]  # the rows of a correlation's factor have length one
    order = np.argsort(draws["mu"][..., 0], axis=-1)
    return {
        name: np.take_along_axis(v, order.reshape(order.shape + (1,) * (v.ndim - order.ndim)), 2)
        for name, v in values.items()
    }


def summary(value: np.ndarray) -> dict[str, Any]:
    """Moments and diagnostics of ``[chains, draws, *site]``."""
    numbers = {
        "mean": value.mean((0, 1)),
        "sd": value.std((0, 1)),
        "r_hat": split_gelman_rubin(value),
        "ess": effective_sample_size(value),
    }
    return {name: np.round(number, 6).tolist() for name, number in numbers.items()}


def show(sites: dict[str, dict[str, Any]]) -> None:
    """Print a line for each number."""
    print(f"{'':18}{'mean':>10}{'sd':>10}{'r_hat':>8}{'ess':>8}")
    for name, moments in sites.items():
        columns = [np.asarray(moments[key]) for key in ("mean", "sd", "r_hat", "ess")]
        for index in np.ndindex(columns[0].shape):
            mean, sd, r_hat, ess = (float(column[index]) for column in columns)
            label = f"{name}[{', '.join(map(str, index))}]"
            print(f"{label:18}{mean:10.4f}{sd:10.4f}{r_hat:8.4f}{ess:8.0f}")


if __name__ == "__main__":
    main()
