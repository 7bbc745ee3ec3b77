"""Every named guide on eight posteriors of posteriordb, at defaults, against long NUTS runs.

Prints a Markdown table: the largest error of a mean in reference standard deviations, the smallest
and the largest ratio of standard deviations, the ELBO and the seconds of the fit.

Usage: python -m benchmarks.posteriordb_families --data FOLDER [--guides NAME ...]
           [--posteriors NAME ...] [--steps N] [--seed N] [--dtype float64]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.posteriordb_programs import POSTERIORS
from ppl_vi import FitResult, fit

GUIDES = (
    "normal",
    "lowrank",
    "multivariate_normal",
    "delta",
    "laplace",
    "structured",
    "mixture",
    "flow",
)
_DRAWS = 40_000
_HEAD = "| posterior | guide | worst mean error | sd ratios | ELBO | seconds |\n" + "|---" * 6 + "|"


class Comparison(NamedTuple):
    """Marginals of a fit beside the reference's.

    Attributes:
        errors: of the means, in reference standard deviations, by quantity.
        ratios: of the standard deviations to the reference's, by quantity.
    """

    errors: dict[str, float]
    ratios: dict[str, float]


def main() -> None:
    """Fit and print, a line as soon as it is known."""
    options = _options()
    torch.set_default_dtype(getattr(torch, options.dtype))
    print(_HEAD, flush=True)
    for name in options.posteriors:
        content = json.loads((options.data / f"{name}.json").read_text())
        for guide in options.guides:
            print(_row(name, guide, content, options), flush=True)


def fitted(name: str, guide: Any, content: dict[str, Any], **settings: Any) -> FitResult:
    """A fit of the named posterior."""
    posterior = POSTERIORS[name]
    arguments = posterior.arguments(content["data"])
    return fit(posterior.model, guide, arguments, progress=False, **settings)


def compared(result: FitResult, reference: dict[str, dict[str, float]]) -> Comparison:
    """Means and standard deviations of draws against the reference's."""
    torch.manual_seed(0)
    draws = result.sample(_DRAWS)
    errors, ratios = {}, {}
    for quantity, known in reference.items():
        site, _, index = quantity.rstrip("]").partition("[")
        values = draws[site].double()
        values = values[..., int(index) - 1] if index else values
        errors[quantity] = (values.mean().item() - known["mean"]) / known["sd"]
        ratios[quantity] = values.std().item() / known["sd"]
    return Comparison(errors, ratios)


def _row(name: str, guide: str, content: dict[str, Any], options: argparse.Namespace) -> str:
    try:
        result = fitted(name, guide, content, seed=options.seed, steps=options.steps)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return f"| {name} | {guide} | failed: {str(error).splitlines()[0]} | | | |"
    errors, ratios = compared(result, content["reference"])
    worst = max(map(abs, errors.values()))
    low, high = min(ratios.values()), max(ratios.values())
    return (
        f"| {name} | {guide} | {worst:.3f} | {low:.2f} to {high:.2f} | {result.elbo:.2f} | "
        f"{result.seconds:.0f} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the JSON files")
    parser.add_argument("--guides", nargs="+", default=GUIDES)
    parser.add_argument("--posteriors", nargs="+", default=list(POSTERIORS), choices=POSTERIORS)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
