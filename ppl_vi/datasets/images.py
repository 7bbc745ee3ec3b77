"""Images from files: NumPy archives, and the IDX format of MNIST."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppl_vi.errors import DataError

_GZIP, _ZIP = b"\x1f\x8b", b"PK"
_BYTES = 8
"""The IDX code of unsigned bytes."""


def read_images(path: Path | str) -> Tensor:
    """``[N, height, width]``: grey values from 0 to 1, of the images in a file.

    Whole numbers are divided by 255. An archive's first array of three dimensions is taken, so labels
    may stand beside it.

    Args:
        path: an ``.npz`` archive, an ``.npy`` array, or an IDX file, the latter gzipped or not.

    Raises:
        DataError: the file is none of these, or has no images.
        OSError: it cannot be read.

    Example:
        >>> images = read_images("train-images-idx3-ubyte.gz")  # doctest: +SKIP

    Source: LeCun, Cortes and Burges, the MNIST database, for the IDX format.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
        known = content[:2] == _ZIP or content[:6] == b"\x93NUMPY"
        images = _of_numpy(content) if known else _of_idx(content)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as images ({reason}). Pass an .npz archive with an array [N, "
            f"height, width], or MNIST's IDX file of images, gzipped or not."
        ) from error
    whole = np.issubdtype(images.dtype, np.integer)
    scaled = images / 255.0 if whole else images.astype(float)
    if not len(scaled) or not ((scaled >= 0) & (scaled <= 1)).all():
        raise DataError(
            f"{path} has no images of grey values: {images.shape} of {images.dtype}. Pass whole "
            f"numbers from 0 to 255, or numbers from 0 to 1."
        )
    return torch.as_tensor(scaled, dtype=torch.get_default_dtype())


def _of_numpy(content: bytes) -> np.ndarray:
    found = np.load(io.BytesIO(content), allow_pickle=False)
    arrays = [found] if isinstance(found, np.ndarray) else [found[name] for name in found.files]
    images = [a for a in arrays if a.ndim == 3 and a.dtype.kind in "uifb"]
    if not images:
        shapes = ", ".join(str(array.shape) for array in arrays) or "none"
        raise ValueError(f"no array [N, height, width] among those of shapes {shapes}")
    return images[0]


def _of_idx(content: bytes) -> np.ndarray:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise ValueError("it is neither NumPy's nor an IDX file of bytes")
    dims = content[3]
    if dims != 3:
        raise ValueError(f"its array has {dims} dimensions, as labels have one, not 3")
    start = 4 + 4 * dims
    shape = tuple(np.frombuffer(content[4:start], ">u4").astype(int))
    if len(shape) != dims or len(content) - start != np.prod(shape):
        raise ValueError("the file is cut off, or longer than it says")
    return np.frombuffer(content[start:], np.uint8).reshape(shape)
