"""Disks that are full, signals, workers that die, and files that are not what they seem."""

from __future__ import annotations

import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import FitResult, fit
from ppl_vi.checkpoints import keeping, read, write
from ppl_vi.checkpoints.format import decoded, encoded
from ppl_vi.errors import CheckpointError
from ppl_vi.stopping.reasons import StopReason

X = torch.linspace(-1.0, 2.0, 20)


def model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 20, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), dist.constraints.positive)
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))


def fitted(**settings: Any) -> FitResult:
    own = {"model": model, "guide": guide, "data": X, "steps": 30, "checkpoint_every": 10}
    return fit(**{**own, "tol": None, "seed": 0, "progress": False, "compile": False, **settings})


def assert_same(one: FitResult, other: FitResult) -> None:
    assert torch.equal(one.losses, other.losses) and one.elbo == other.elbo
    for name, value in one.params.items():
        assert torch.equal(value, other.params[name])


def test_a_fit_that_is_over_is_given_again(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    first = fitted(checkpoint=path, resume=True)  # there is none yet
    heard: list[int] = []
    again = fitted(checkpoint=path, resume=True, callbacks=[lambda p: heard.append(p.step)])
    assert_same(again, first)
    assert not heard and path.exists()
    longer = fitted(optimizer=torch.optim.Adam, checkpoint=tmp_path / "b", steps=20)
    longer = fitted(optimizer=torch.optim.Adam, checkpoint=tmp_path / "b", steps=30, resume=True)
    assert_same(longer, fitted(optimizer=torch.optim.Adam))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a fit that is over."""
    path = tmp_path_factory.mktemp("written") / "run.ckpt"
    fitted(checkpoint=path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"data": X + 1.0}, r"argument 0 \(.*content"),
        ({"data": X.double()}, r"argument 0 \(.*float32.*in the file"),
        ({"data": X[:10]}, r"the number of rows \(20 in the file, 10 here\)"),
        ({"batch_size": 5}, r"batch_size \(20 in the file, 5 here\)"),
        ({"guide": "normal"}, r"the guide \(a function in the file, NormalGuide here\)"),
        ({"optimizer": torch.optim.SGD}, r"optimizer \(None in the file, SGD .* here\)"),
        ({"on_nan": "skip"}, r"on_nan \(raise in the file, skip here\)"),
        ({"seed": 1}, r"seed \(0 in the file, 1 here\)"),
        ({"steps": 40}, r"steps, over which the learning rate falls, \(30 in the file, 40 here\)"),
        ({"kl_schedule": 0.5}, r"kl_schedule \(only here\)"),
        ({"objective": pyro.infer.Trace_ELBO()}, r"objective \(ELBO\(.* in the file, Trace_ELBO"),
    ],
)
def test_another_fit_is_refused(
    settings: Any, differs: str, written: bytes, tmp_path: Path
) -> None:
    (tmp_path / "run.ckpt").write_bytes(written)
    state = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=f"run.ckpt' is of another fit, .*{differs}"):
        fitted(checkpoint=tmp_path / "run.ckpt", resume=True, **settings)
    assert (tmp_path / "run.ckpt").read_bytes() == written
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=True needs the file"):
        fitted(resume=True)
    with pytest.raises(TypeError, match="checkpoint must be the path"):
        fitted(checkpoint=3)
    with pytest.raises(ValueError, match="checkpoint_every must be a positive"):
        fitted(checkpoint=tmp_path / "a", checkpoint_every=0)
    fitted().save(tmp_path / "fit.ckpt")
    with pytest.raises(CheckpointError, match=r"holds no fit that can go on.*FitResult\.load"):
        fitted(checkpoint=tmp_path / "fit.ckpt", resume=True)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path: Path) -> None:
    heard: list[int] = []
    for path in (tmp_path / "gone" / "run.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written"):
            fitted(checkpoint=path, callbacks=[lambda p: heard.append(p.step)])
    assert not heard


def test_a_disk_that_fills_up_ends_no_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writes = tmp_path / "run.ckpt", []

    def full(*args: Any) -> None:
        writes.append(path)
        if len(writes) > 2:
            raise OSError(28, "No space left on device")
        write(*args)

    whole = fitted(steps=50)
    monkeypatch.setattr(keeping, "write", full)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_same(fitted(steps=50, checkpoint=path), whole)
    first, last = (str(each.message) for each in told if "checkpoint" in str(each.message))
    assert "could not be written at step 20 (No space left on device)" in first
    assert "4 of 5 checkpoints could not be written" in last
    monkeypatch.undo()
    assert len(read(path)["ranks"][0]["past"]["losses"]) == 10  # the last good one
    assert_same(fitted(steps=50, checkpoint=path, resume=True), whole)


def test_a_folder_that_vanishes_ends_no_fit(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()

    def callback(progress: Any) -> None:
        if progress.step == 25:
            shutil.rmtree(tmp_path / "own")

    with pytest.warns(UserWarning, match="could not be written at step 30"):
        fitted(checkpoint=tmp_path / "own" / "run.ckpt", callbacks=[callback])


@pytest.mark.usefixtures("usual_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "own", [guide, pytest.param("cavi", marks=pytest.mark.slow)], ids=["steps", "sweeps"]
)
def test_a_signal_leaves_a_last_checkpoint(number: int, own: Any, tmp_path: Path) -> None:
    def callback(progress: Any) -> None:
        if progress.step == 7:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    settings = {"guide": own, "checkpoint": tmp_path / "run.ckpt", "restarts": 2}
    cut = fitted(callbacks=[callback], **settings)
    assert cut.stop_reason is StopReason.INTERRUPTED and cut.num_steps == 7
    assert signal.getsignal(number) is before
    assert_same(fitted(resume=True, **settings), fitted(guide=own, restarts=2))


def test_a_callback_that_stopped_a_fit_is_asked_again(tmp_path: Path) -> None:
    settings = {"checkpoint": tmp_path / "run.ckpt"}
    cut = fitted(callbacks=[lambda progress: progress.step == 12], **settings)
    same = fitted(callbacks=[lambda progress: progress.step >= 12], resume=True, **settings)
    assert same.stop_reason is cut.stop_reason is StopReason.CALLBACK
    assert_same(same, cut)
    assert_same(fitted(resume=True, **settings), fitted())


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(fitted(steps=3)))
    thread.start()
    thread.join()
    assert results[0].num_steps == 3


DEADLY = """
import os, signal, sys, pyro, pyro.distributions as dist, torch
from torch.utils.data import DataLoader, Dataset
from ppl_vi import fit
from ppl_vi.errors import DataError

class Deadly(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, row):
        if row == 17 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(float(row))

def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

try:
    loader = DataLoader(Deadly(), batch_size=5, num_workers=1)
    fit(model, "normal", loader, steps=60, seed=0, progress=False, checkpoint=sys.argv[1])
except DataError as error:
    print(error, flush=True)
    os._exit(0)  # torch may tell of the dead worker once more
"""


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    """In a process of its own, since torch may raise its error again at any later time."""
    path = str(tmp_path / "run.ckpt")
    ended = subprocess.run([sys.executable, "-c", DEADLY, path], capture_output=True, text=True)
    assert re.search(r"reads the data died: DataLoader worker.*resume=True", ended.stdout)
    assert read(path)["kind"] == "run"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_damaged_checkpoints_are_refused(written: bytes, tmp_path: Path) -> None:
    """And nothing is done with what is in them."""
    path, chance, content = tmp_path / "run.ckpt", random.Random(0), written
    bombs = [pickle.dumps(Bomb(tmp_path / "went off")), content[:40] + pickle.dumps(Bomb(tmp_path))]
    for number in range(1_000):
        place, other = sorted(chance.sample(range(0, len(content) - 16, 16), 2))
        flipped = content[:place] + bytes([content[place] ^ 1 << number % 8]) + content[place + 1 :]
        one, two = content[place : place + 16], content[other : other + 16]
        between, end = content[place + 16 : other], content[other + 16 :]
        swapped = content[:place] + two + between + one + end
        kinds = (flipped, content[:place], swapped, bombs[number // 4 % 2])
        path.write_bytes(content + b"0" if kinds[number % 4] == content else kinds[number % 4])
        with pytest.raises(CheckpointError, match=r"damaged|no file of ppl-vi"):
            fitted(checkpoint=path, resume=True)
    assert not (tmp_path / "went off").exists()
    assert len(pyro.get_param_store()) == 0


def test_swapped_tensors_are_refused(written: bytes, tmp_path: Path) -> None:
    """Under a right digest: what has other shapes is not laid half into the programs."""
    path, state = tmp_path / "run.ckpt", decoded(written, "written")
    state["ranks"][0]["programs"]["parameters"]["loc"] = torch.zeros(3)
    path.write_bytes(encoded(state))
    with pytest.raises(
        CheckpointError, match=r"'loc' has shape \(3,\) in .*run.ckpt', and \(\) here"
    ):
        fitted(checkpoint=path, resume=True)
    state["ranks"][0]["programs"]["parameters"]["loc"] = torch.zeros(())
    del state["ranks"][0]["runner"]
    path.write_bytes(encoded(state))
    with pytest.raises(CheckpointError, match=r"run.ckpt' does not hold"):
        fitted(checkpoint=path, resume=True)
