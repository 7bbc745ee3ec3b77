"""Pictures of images and of what a model makes of them, as Matplotlib figures of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vi.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Decode = Callable[[Tensor], Tensor]
"""From latents ``[N, size]`` to images ``[N, height, width]``."""

_INCHES, _INK = 7.5, "#444444"
_GAP = 1


def image_sheet(images: Tensor, columns: int, rows: Sequence[str] = ()) -> Figure:
    """Images side by side, row by row, from white (0) to black (1).

    Args:
        images: ``[N, height, width]``, or ``[N, channels, height, width]`` of one channel or three
            (then in their own colours); values outside 0 to 1 are cut off.
        columns: how many stand in a row.
        rows: a label for each row, if any.

    Raises:
        DataError: the images have another number of dimensions.

    Example:
        >>> figure = image_sheet(torch.rand(6, 8, 8), columns=3)
    """
    from matplotlib.figure import Figure  # heavy, and not every fit needs it

    sheet = _joined(images, columns)
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(_INCHES, max(1.0, _INCHES * height / width)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    one = images.shape[-2] + _GAP
    axes.set_yticks([one * (i + 0.5) for i in range(len(rows))], labels=rows)
    axes.tick_params(length=0, labelcolor=_INK)
    return figure


def reconstructions(originals: Tensor, decoded: Tensor, columns: int = 10) -> Figure:
    """Originals, and under each of them what the model makes of it.

    Args:
        originals: ``[N, height, width]``.
        decoded: likewise.
        columns: how many stand in a row.

    Raises:
        DataError: there are not as many of the ones as of the others.

    Example:
        >>> figure = reconstructions(torch.rand(5, 8, 8), torch.rand(5, 8, 8), columns=5)
    """
    if originals.shape != decoded.shape:
        raise DataError(
            f"originals have shape {tuple(originals.shape)}, their reconstructions "
            f"{tuple(decoded.shape)}. Pass one for each."
        )
    pairs = zip(originals.split(columns), decoded.split(columns), strict=True)
    padded = [_padded(part, columns) for pair in pairs for part in pair]
    labels = ["data", "model"] * (len(padded) // 2)
    return image_sheet(torch.cat(padded), columns, labels)


def latent_grid(decode: Decode, count: int = 15, extent: float = 0.98) -> Figure:
    """What each place of a latent space of two dimensions decodes to, at even shares of Normal(0, 1).

    Args:
        decode: from ``[N, 2]`` to images.
        count: places along each dimension.
        extent: the share of the prior, in each dimension, that is shown.

    Example:
        >>> figure = latent_grid(lambda z: torch.rand(len(z), 8, 8), count=4)
    """
    shares = torch.linspace((1 - extent) / 2, (1 + extent) / 2, count)
    places = torch.distributions.Normal(0.0, 1.0).icdf(shares)
    across = places.repeat(count)
    down = places.flip(0).repeat_interleave(count)
    return image_sheet(decode(torch.stack([across, down], 1)), count)


def interpolation(decode: Decode, starts: Tensor, ends: Tensor, count: int = 10) -> Figure:
    """From one latent to another in even steps, a row for each pair.

    Args:
        decode: from ``[N, size]`` to images.
        starts: ``[pairs, size]``.
        ends: likewise.
        count: images in a row, both ends among them.

    Example:
        >>> decode = lambda z: torch.rand(len(z), 8, 8)
        >>> figure = interpolation(decode, torch.zeros(2, 3), torch.ones(2, 3), count=5)
    """
    shares = torch.linspace(0, 1, count).to(starts).reshape(1, count, 1)
    latents = starts.unsqueeze(1) + shares * (ends - starts).unsqueeze(1)
    return image_sheet(decode(latents.flatten(0, 1)), count)


def _joined(images: Tensor, columns: int) -> Tensor:
    """``[height, width]`` or ``[height, width, 3]`` of all images with gaps between them."""
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise DataError(
            f"images must be [N, height, width] or [N, channels, height, width] with one channel or "
            f"three, not {list(images.shape)}. Pass images.reshape(-1, height, width)."
        )
    images = _padded(images.detach().cpu().clamp(0, 1), columns)
    channels = images.shape[1]
    gapped = torch.nn.functional.pad(
        images, (0, _GAP, 0, _GAP), value=0.0 if channels == 1 else 1.0
    )
    _, _, height, width = gapped.shape
    square = gapped.reshape(-1, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    sheet = square.reshape(-1, columns * width, channels)
    return sheet.squeeze(-1)[:-_GAP, :-_GAP]


def _padded(images: Tensor, columns: int) -> Tensor:
    """The images with blank ones after them, so that the last row is full."""
    missing = -len(images) % columns
    return torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
