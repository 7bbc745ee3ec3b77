"""The command line: ``python -m ppl_vi``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ppl_vi.errors import DataError

_PROGRAM = "python -m ppl_vi"
_MOST_SEED = 2**32 - 1  # NumPy's limit
_DEMO = """\
Fit a Bayesian Gaussian mixture to the Old Faithful eruptions (272 rows, shipped with
the package), print the summary, and write to a folder:
  summary.txt   the summary table
  posterior.nc  the posterior as NetCDF, for ArviZ
  elbo.png      the ELBO curve
  mixture.png   the data with each component's posterior ellipse
It takes about half a minute."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 where the command line or a file is at fault."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    from ppl_vi.demo import run_demo  # Matplotlib takes a while, and --help should not

    try:
        run_demo(
            options.out, options.components, options.steps, options.seed, progress=not options.quiet
        )
    except DataError as error:
        return _fault(str(error))
    except OSError as error:
        return _fault(f"cannot write to {options.out}: {error.strerror or error}")
    return 0


def _fault(message: str) -> int:
    print(f"{_PROGRAM} demo: {message}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_PROGRAM,
        description="Variational inference for Pyro programs.",
        epilog=f"The demo:\n{_DEMO}\n\nExample: {_PROGRAM} demo --out out",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    demo = commands.add_parser(
        "demo",
        help="fit a Gaussian mixture to Old Faithful",
        description=_DEMO,
        epilog=f"Example: {_PROGRAM} demo --components 3 --out three",
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
    demo.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="for everything random (%(default)s)"
    )
    demo.add_argument("--quiet", action="store_true", help="show no progress bar")
    return parser


def _positive(text: str) -> int:
    return _integer(text, 1, sys.maxsize, "a positive integer")


def _seed(text: str) -> int:
    return _integer(text, 0, _MOST_SEED, f"an integer from 0 to {_MOST_SEED}")


def _integer(text: str, least: int, most: int, wanted: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return number


if __name__ == "__main__":
    sys.exit(main())
