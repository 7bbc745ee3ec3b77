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
_VAE_DEMO = """\
demo vae: train variational autoencoders of 16 and of 2 latent dimensions on scikit-learn's
8x8 digits, or on the images of --data, and write to the folder:
  summary.txt          reconstruction and KL of images that were held out
  elbo.png             the ELBO curve
  reconstructions.png  images that were held out, with the model's under them
  samples.png          new images, drawn from the prior
  latent_grid.png      what each place of a latent space of two dimensions decodes to
  interpolation.png    from one image to another in even steps
It takes about a minute."""
_STEPS = {"gmm": 4_000, "vae": 3_000}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 where the command line or a file is at fault."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    foreign = "--data" if options.demo == "gmm" else "--components"
    if getattr(options, foreign[2:]) is not None:
        parser.error(f"demo {options.demo} takes no {foreign}")
    try:
        _run(options)
    except DataError as error:
        return _fault(str(error))
    except OSError as error:
        reading = options.data is not None and error.filename == str(options.data)
        what = f"cannot {f'read {options.data}' if reading else f'write to {options.out}'}"
        return _fault(f"{what}: {error.strerror or error}")
    return 0


def _run(options: argparse.Namespace) -> None:
    steps, progress = options.steps or _STEPS[options.demo], not options.quiet
    # Matplotlib takes a while, and --help should not
    if options.demo == "gmm":
        from ppl_vi.demo import run_demo

        run_demo(options.out, options.components or 2, steps, options.seed, progress)
    else:
        from ppl_vi.vae_demo import run_vae_demo

        run_vae_demo(options.data, options.out, steps, options.seed, progress)


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
        epilog=f"The demo:\n{_DEMO}\n\n{_VAE_DEMO}\n\nExample: {_PROGRAM} demo --out out",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    demo = commands.add_parser(
        "demo",
        help="fit a Gaussian mixture to Old Faithful, or an autoencoder to digits",
        description=f"{_DEMO}\n\n{_VAE_DEMO}",
        epilog=f"Examples:\n  {_PROGRAM} demo --components 3 --out three\n"
        f"  {_PROGRAM} demo vae --data train-images-idx3-ubyte.gz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "demo",
        nargs="?",
        choices=("gmm", "vae"),
        default="gmm",
        help="which (%(default)s)",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="where to write (%(default)s)",
    )
    demo.add_argument("--components", type=_positive, metavar="K", help="of the mixture (2)")
    demo.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="images for the autoencoder: NPZ, or MNIST's IDX, gzipped or not",
    )
    steps = ", ".join(f"{name} {count}" for name, count in _STEPS.items())
    demo.add_argument("--steps", type=_positive, metavar="N", help=f"gradient steps ({steps})")
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
