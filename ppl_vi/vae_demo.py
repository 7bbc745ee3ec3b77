"""The demo of a variational autoencoder: handwritten digits, and pictures of what it learned."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ppl_vi.datasets import read_images
from ppl_vi.demo import make_writable
from ppl_vi.diagnostics.image_pictures import (
    image_sheet,
    interpolation,
    latent_grid,
    reconstructions,
)
from ppl_vi.diagnostics.pictures import elbo_curve
from ppl_vi.estimate import Estimate
from ppl_vi.fitting import fit
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE
from ppl_vi.networks import perceptron_encoder
from ppl_vi.objectives import ELBO
from ppl_vi.randomness import forked_rng
from ppl_vi.result import FitResult

_DPI, _BATCH, _COLUMNS, _PAIRS = 130, 128, 10, 6
_HIDDEN = (200,)
_WARM_UP = 0.2
"""The share of the steps in which the weight of the KL term rises to one."""

_FILES = {
    "summary.txt": "the table above",
    "elbo.png": "the ELBO of each step",
    "reconstructions.png": "images that were held out, with the model's under them",
    "samples.png": "new images, drawn from the prior",
    "latent_grid.png": "what each place of a latent space of two dimensions decodes to",
    "interpolation.png": "from one image to another in even steps",
}


def run_vae_demo(data: Path | None, folder: Path, steps: int, seed: int, progress: bool) -> None:
    """Train two autoencoders, of 16 and of 2 latent dimensions, and write a table and pictures.

    Args:
        data: a file of images; scikit-learn's digits where there is none.
        folder: where the files go; made if need be.
        steps: gradient steps of each.
        seed: for everything random.
        progress: show a progress bar.

    Raises:
        DataError: the file has no images.
        OSError: the folder cannot be written, or the file not be read.
    """
    images = _digits() if data is None else read_images(data)
    make_writable(folder)
    images = (images > 0.5).to(images.dtype)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    held_out = max(1, min(1_000, len(images) // 10))
    train, test = images[held_out:], images[:held_out]
    print(f"Training on {len(train)} images of {tuple(train.shape[1:])} pixels.")
    wide, flat = (_fitted(train, size, steps, seed, progress) for size in (16, 2))
    table = wide.kl_report(test).to_string(float_format="{:.3f}".format)
    print(f"\nheld-out images, 16 latent dimensions, nats per image\n{table}\n")
    (folder / "summary.txt").write_text(f"{table}\n")
    elbo = Estimate(wide.elbo / len(train), wide.elbo.standard_error / len(train))
    elbo_curve(wide.losses / len(train), elbo).savefig(folder / "elbo.png", dpi=_DPI)
    with torch.no_grad(), forked_rng(seed=seed):
        _draw(wide, flat, test, folder)
    print(f"ELBO {elbo} nats per image in {wide.seconds:.0f} s.")
    for name, what in _FILES.items():
        print(f"  {folder / name}  {what}")


def _digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.as_tensor(load_digits().images / 16, dtype=torch.get_default_dtype())


def _fitted(images: Tensor, size: int, steps: int, seed: int, progress: bool) -> FitResult:
    shape = tuple(images.shape[1:])
    with forked_rng(seed=seed):  # of the networks
        model = VAE(shape, size, hidden=_HIDDEN)
        guide = EncoderGuide(perceptron_encoder(shape, size, _HIDDEN))
    return fit(
        model,
        guide,
        images,
        objective=ELBO(num_particles=1),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        kl_schedule=lambda step: min(1.0, (1 + step) / max(1.0, _WARM_UP * steps)),
        steps=steps,
        batch_size=_BATCH,
        seed=seed,
        progress=progress,
    )


def _draw(wide: FitResult, flat: FitResult, test: Tensor, folder: Path) -> None:
    """The pictures."""
    decode = wide.job.model.decode  # type: ignore[attr-defined]
    codes = wide.guide.posterior(test).mean  # type: ignore[attr-defined]
    shown = min(len(test), 3 * _COLUMNS)
    pairs = min(_PAIRS, len(test) // 2)
    prior = torch.randn(_COLUMNS**2, codes.shape[1], dtype=codes.dtype)
    figures = {
        "reconstructions.png": reconstructions(test[:shown], decode(codes[:shown]), _COLUMNS),
        "samples.png": image_sheet(decode(prior), _COLUMNS),
        "latent_grid.png": latent_grid(lambda z: flat.job.model.decode(z.to(codes))),  # type: ignore[attr-defined]
        "interpolation.png": interpolation(decode, codes[:pairs], codes[-pairs:], _COLUMNS),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=_DPI)
