"""Networks for encoders and decoders, flat and of images; any ``nn.Module`` may take their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

_LEAST_SCALE = 1e-6


def perceptron(
    sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A multilayer perceptron, linear layers with an activation between them.

    Args:
        sizes: of the input, of each hidden layer, of the output.
        activation: makes what stands between two layers.

    Example:
        >>> import torch
        >>> perceptron([784, 400, 20])(torch.zeros(3, 784)).shape
        torch.Size([3, 20])
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class GaussianEncoder(nn.Module):
    """From data to the mean and the scale of a Gaussian: (loc, scale) = heads(body(x)).

    ``loc`` is ``[N, size]``. ``scale`` is ``[N, size]``, standard deviations; with
    ``covariance="full"`` it is ``[N, size, size]``, a lower Cholesky factor of the covariance.

    Args:
        body: from ``[N, *event]`` to features ``[N, num_features]``.
        num_features: of the body.
        size: of the latent.
        covariance: ``"diagonal"`` or ``"full"``.

    Example:
        >>> import torch
        >>> body = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        >>> loc, scale = GaussianEncoder(body, 8, 2)(torch.zeros(3, 5))
        >>> loc.shape, scale.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))

    Source: Kingma and Welling (2014), appendix C.
    """

    def __init__(
        self, body: nn.Module, num_features: int, size: int, covariance: str = "diagonal"
    ) -> None:
        super().__init__()
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance must be 'diagonal' or 'full', not {covariance!r}.")
        self.body, self.loc = body, nn.Linear(num_features, size)
        self.scale = nn.Linear(num_features, size)
        self.below = nn.Linear(num_features, size * size) if covariance == "full" else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``loc`` and ``scale`` of each row."""
        features = self.body(x)
        loc, scale = self.loc(features), softplus(self.scale(features)) + _LEAST_SCALE
        if self.below is None:
            return loc, scale
        square = self.below(features).reshape(*loc.shape, loc.shape[-1])
        return loc, square.tril(-1) + scale.diag_embed()


def perceptron_encoder(
    event_shape: Sequence[int],
    size: int,
    hidden: Sequence[int] = (400,),
    covariance: str = "diagonal",
) -> GaussianEncoder:
    """A multilayer perceptron from ``[N, *event_shape]`` to a Gaussian over the latent.

    Args:
        event_shape: of one row of the data; it is made flat.
        size: of the latent.
        hidden: sizes of the hidden layers; none for an affine encoder.
        covariance: ``"diagonal"`` or ``"full"``.

    Example:
        >>> import torch
        >>> loc, scale = perceptron_encoder((8, 8), 2)(torch.zeros(3, 8, 8))
        >>> loc.shape
        torch.Size([3, 2])
    """
    sizes = [prod(event_shape), *hidden]
    body = nn.Sequential(
        nn.Flatten(-len(event_shape)) if event_shape else nn.Unflatten(-1, (-1, 1))
    )
    if hidden:
        body.extend([perceptron(sizes), nn.ReLU()])
    return GaussianEncoder(body, sizes[-1], size, covariance)


def perceptron_decoder(
    size: int, event_shape: Sequence[int], hidden: Sequence[int] = (400,)
) -> nn.Sequential:
    """A multilayer perceptron from ``[N, size]`` to ``[N, *event_shape]``.

    Args:
        size: of the latent.
        event_shape: of one row of the data.
        hidden: sizes of the hidden layers; none for an affine decoder.

    Example:
        >>> import torch
        >>> perceptron_decoder(2, (8, 8))(torch.zeros(3, 2)).shape
        torch.Size([3, 8, 8])
    """
    flat = perceptron([size, *hidden, prod(event_shape)])
    return nn.Sequential(flat, nn.Unflatten(-1, tuple(event_shape)))


class _Images(nn.Module):
    """``[N, H, W]`` or ``[N, channels, H, W]`` to the latter."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(event_shape) if len(event_shape) == 3 else (1, *event_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


class _Cropped(nn.Module):
    """The upper left corner of images, in the shape of the data."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(event_shape)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.shape[-2:]
        return x[..., :height, :width].reshape(len(x), *self.shape)


def convolutional_encoder(
    event_shape: Sequence[int],
    size: int,
    channels: Sequence[int] = (32, 64),
    covariance: str = "diagonal",
) -> GaussianEncoder:
    """Convolutions that halve the image, one for each number of channels, then a linear layer.

    Args:
        event_shape: ``(H, W)`` or ``(channels, H, W)`` of an image.
        size: of the latent.
        channels: of each convolution.
        covariance: ``"diagonal"`` or ``"full"``.

    Example:
        >>> import torch
        >>> loc, scale = convolutional_encoder((28, 28), 20)(torch.zeros(3, 28, 28))
        >>> loc.shape
        torch.Size([3, 20])
    """
    first, height, width = _checked(event_shape)
    layers: list[nn.Module] = [_Images(event_shape)]
    for inputs, outputs in pairwise([first, *channels]):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        height, width = -(-height // 2), -(-width // 2)
    features = nn.Sequential(*layers, nn.Flatten())
    return GaussianEncoder(features, channels[-1] * height * width, size, covariance)


def convolutional_decoder(
    size: int, event_shape: Sequence[int], channels: Sequence[int] = (64, 32)
) -> nn.Sequential:
    """A linear layer, then transposed convolutions that double the image.

    Args:
        size: of the latent.
        event_shape: ``(H, W)`` or ``(channels, H, W)`` of an image.
        channels: that each transposed convolution takes.

    Example:
        >>> import torch
        >>> convolutional_decoder(20, (28, 28))(torch.zeros(3, 20)).shape
        torch.Size([3, 28, 28])
    """
    last, height, width = _checked(event_shape)
    for _ in channels:
        height, width = -(-height // 2), -(-width // 2)
    layers: list[nn.Module] = [
        nn.Linear(size, channels[0] * height * width),
        nn.Unflatten(-1, (channels[0], height, width)),
    ]
    for inputs, outputs in pairwise([*channels, last]):
        layers += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
    return nn.Sequential(*layers, _Cropped(event_shape))


def _checked(event_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(event_shape) not in (2, 3):
        raise ValueError(
            f"a convolutional network needs images, (H, W) or (channels, H, W), not rows of shape "
            f"{tuple(event_shape)}. Use a perceptron, or give the rows the shape of an image."
        )
    first, height, width = event_shape if len(event_shape) == 3 else (1, *event_shape)
    return first, height, width


_CASTS = {"torch.float64": "double", "torch.float32": "float", "torch.float16": "half"}


def called(
    network: Callable[..., Any], role: str, error: type[ValueError], *args: Any, **kwargs: Any
) -> Any:
    """What a network gives; where it does not run on these data, an error that says so in words.

    Args:
        network: any module or function.
        role: what it is called in the error.
        error: what is raised.
        *args: of the network.
        **kwargs: likewise.

    Example:
        >>> import torch
        >>> called(nn.Linear(3, 2), "the encoder", ValueError, torch.zeros(5, 4))
        Traceback (most recent call last):
            ...
        ValueError: the encoder (Linear) cannot take data of shape [5, 4]: mat1 and mat2 shapes cannot \
be multiplied (5x4 and 3x2). Change the size of its first layer, or the shape of the data.
    """
    try:
        return network(*args, **kwargs)
    except RuntimeError as cause:
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        own = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        if own is None or not given:
            raise
        role = f"{role} ({type(network).__name__})"
        if given[0].dtype != own.dtype:
            cast = _CASTS.get(str(own.dtype), f"to({own.dtype})").removesuffix("()")
            raise error(
                f"{role} has parameters of {own.dtype} and was given {given[0].dtype}. Pass data of "
                f"{own.dtype}, x.{cast}(), or move the network with network.to({given[0].dtype})."
            ) from cause
        reason = str(cause).splitlines()[0]
        raise error(
            f"{role} cannot take data of shape {list(given[0].shape)}: {reason}. Change the size of "
            f"its first layer, or the shape of the data."
        ) from cause


def applied_to_rows(network: Callable[[Tensor], Tensor], x: Tensor, event_dim: int = 1) -> Tensor:
    """A network of ``[rows, *event]`` applied to ``[..., *event]``.

    Args:
        network: any module or function that takes a batch of rows.
        x: with any number of dimensions before the event.
        event_dim: how many dimensions the event has.

    Example:
        >>> import torch
        >>> applied_to_rows(nn.Linear(2, 5), torch.zeros(4, 3, 2)).shape
        torch.Size([4, 3, 5])
    """
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    rows: Tensor = network(x.reshape(prod(batch), *event))
    return rows.reshape(*batch, *rows.shape[1:])


__all__ = [
    "GaussianEncoder",
    "applied_to_rows",
    "called",
    "convolutional_decoder",
    "convolutional_encoder",
    "perceptron",
    "perceptron_decoder",
    "perceptron_encoder",
]
