"""Image files, pictures of images, and the demo that makes them."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vi import DataError
from ppl_vi.__main__ import main
from ppl_vi.datasets import read_images
from ppl_vi.diagnostics.image_pictures import (
    image_sheet,
    interpolation,
    latent_grid,
    reconstructions,
)

BYTES = np.arange(60, dtype=np.uint8).reshape(5, 3, 4) * 4


def idx(array, code=8):
    return (
        struct.pack(">BBBB", 0, 0, code, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def test_archives_and_idx_files_are_read_alike(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.arange(5), images=BYTES)
    np.save(tmp_path / "a.npy", BYTES)
    np.savez(tmp_path / "grey.npz", BYTES / 255.0)
    written(tmp_path, "a-idx3-ubyte", idx(BYTES))
    written(tmp_path, "a-idx3-ubyte.gz", gzip.compress(idx(BYTES)))
    for name in ("a.npz", "a.npy", "grey.npz", "a-idx3-ubyte", "a-idx3-ubyte.gz"):
        torch.testing.assert_close(
            read_images(tmp_path / name), torch.as_tensor(BYTES / 255.0).float()
        )


BAD = {
    "text": b"hello, world",
    "empty": b"",
    "labels": idx(np.arange(5, dtype=np.uint8)),
    "cut": idx(BYTES)[:-3],
    "long": idx(BYTES) + b"x",
    "floats": idx(BYTES.astype(">f4"), code=13),
    "gzip": gzip.compress(idx(BYTES))[:-9],
    "zip": b"PK\x03\x04 and no more",
    "header": idx(BYTES)[:7],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(name, tmp_path, capsys):
    path = written(tmp_path, name, BAD[name])
    with pytest.raises(DataError, match="Pass"):
        read_images(path)
    assert main(["demo", "vae", "--data", str(path), "--out", str(tmp_path), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(path) in line


def test_bad_arrays(tmp_path):
    for array in (np.zeros((5, 4)), np.full((2, 3, 3), 7.0), np.full((2, 3, 3), np.nan)):
        np.savez(tmp_path / "a.npz", array)
        with pytest.raises(DataError, match="Pass"):
            read_images(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="Pass"):
        read_images(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "/nowhere/a.npz"], "cannot read /nowhere/a.npz: No such file"),
        (["--components", "3"], "demo vae takes no --components"),
        (["--out", "/dev/null/here"], "cannot write to /dev/null/here"),
        (["--steps", "0"], "--steps: '0' is not a positive integer"),
    ],
)
def test_bad_options_are_one_line(arguments, said, capsys, tmp_path):
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    try:
        code = main(["demo", "vae", "--quiet", *arguments, *out])
    except SystemExit as stopped:
        code = stopped.code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and said in line


def test_the_demo_writes_its_pictures(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8))
    out = tmp_path / "out"
    command = ["demo", "vae", "--steps", "5", "--quiet", "--out", str(out)]
    assert main([*command, "--data", str(tmp_path / "a.npz")]) == 0
    said = capsys.readouterr().out
    names = ["reconstructions.png", "samples.png", "latent_grid.png", "interpolation.png"]
    for name in [*names, "elbo.png", "summary.txt"]:
        assert (out / name).stat().st_size > 0 and name in said
    with Image.open(out / "samples.png") as picture:
        assert 900 <= picture.width <= 1_000


def shown(figure):
    return np.asarray(figure.axes[0].get_images()[0].get_array())


def test_a_sheet_has_its_images_row_by_row():
    images = torch.rand(5, 2, 3)
    sheet = shown(image_sheet(images, columns=3))
    assert sheet.shape == (2 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_allclose(sheet[:2, 4:7], images[1])
    np.testing.assert_allclose(sheet[3:5, :3], images[3])
    assert (sheet[3:5, 8:] == 0).all()  # no sixth image
    colours = shown(image_sheet(torch.rand(4, 3, 2, 2), columns=2))
    assert colours.shape == (5, 5, 3)


def test_pairs_grids_and_steps():
    one, other = torch.rand(7, 4, 4), torch.rand(7, 4, 4)
    sheet = shown(reconstructions(one, other, columns=5))
    np.testing.assert_allclose(sheet[:4, :4], one[0])
    np.testing.assert_allclose(sheet[5:9, :4], other[0])
    np.testing.assert_allclose(sheet[10:14, 5:9], one[6])

    def first(z):
        return z[:, :1, None].expand(-1, 2, 2) / 10 + 0.5

    grid = shown(latent_grid(first, count=3))
    assert grid[0, 0] < grid[0, 3] < grid[0, 6] and grid[0, 3] == pytest.approx(0.5)
    steps = shown(interpolation(first, torch.zeros(2, 1), torch.ones(2, 1), count=3))
    np.testing.assert_allclose(steps[0, ::3], [0.5, 0.55, 0.6], rtol=1e-5)


def test_bad_pictures():
    with pytest.raises(DataError, match="reshape"):
        image_sheet(torch.rand(4, 6), 2)
    with pytest.raises(DataError, match="one for each"):
        reconstructions(torch.rand(2, 3, 3), torch.rand(3, 3, 3))
