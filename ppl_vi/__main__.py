"""The command line: ``python -m ppl_vi``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_DEMO = """\
Fit a Bayesian Gaussian mixture to the Old Faithful eruptions (272 rows, shipped with the package) and
write to a folder: the summary table (summary.txt), the posterior as NetCDF (posterior.nc), the ELBO
curve (elbo.png), and the data with each component's posterior ellipse (mixture.png)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 where the command line or a file is at fault."""
    options = _parser().parse_args(arguments)
    from ppl_vi.demo import run_demo  # torch takes seconds, and --help should not

    try:
        run_demo(
            options.out, options.components, options.steps, options.seed, progress=not options.quiet
        )
    except (OSError, ValueError) as error:
        print(f"ppl_vi demo: {error}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m ppl_vi", description="Variational inference for Pyro programs."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="fit a Gaussian mixture to Old Faithful",
        description=_DEMO,
        epilog="Example: python -m ppl_vi demo --components 3 --out three",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="where to write (%(default)s)",
    )
    demo.add_argument(
        "--components", type=_positive, default=2, metavar="K", help="of the mixture (%(default)s)"
    )
    demo.add_argument(
        "--steps", type=_positive, default=4_000, metavar="N", help="gradient steps (%(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, help="for everything random (%(default)s)")
    demo.add_argument("--quiet", action="store_true", help="show no progress bar")
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return number


if __name__ == "__main__":
    sys.exit(main())
