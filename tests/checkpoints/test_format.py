"""A file of state is read back as it was, or refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_vi.checkpoints import read, write
from ppl_vi.checkpoints.format import VERSION, decoded, encoded
from ppl_vi.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
STATE = {
    "step": 12,
    "rates": [0.1, 1e-300, math.inf],
    "adam": {0: {"moment": torch.randn(7, 3)}, 1: {"moment": torch.zeros(0, 4)}},
    "flag": torch.tensor(True),
    "nothing": None,
    "random": torch.get_rng_state(),
    "name": "μ/σ",
}


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit, NaN included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def bits(tensor: torch.Tensor) -> bytes:
    return safetensors.torch.save({"": tensor.contiguous()})


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NESTED = st.recursive(
    PLAIN | st.sampled_from([torch.full((2,), 1.5).to(dtype) for dtype in DTYPES]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(NESTED)
@settings(max_examples=200, deadline=None)
def test_what_is_read_is_what_was_written(state: Any) -> None:
    assert same(decoded(encoded(state), "x"), state)


def test_views_parameters_and_shared_memory(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    state = {"t": table.mT, "row": table[1], "same": table, "own": torch.nn.Parameter(table)}
    write(tmp_path / "x", state)
    found = read(tmp_path / "x")
    assert same(found, {name: value.detach() for name, value in state.items()})
    assert not found["own"].requires_grad


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [object()]}, r"state\['a'\]\[0\] is a object"),
        ({1.5: 0}, "key 1.5"),
        ({"a": print}, "builtin_function"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        write(tmp_path / "x", state)
    assert not list(tmp_path.iterdir())


def damaged(content: bytes, kind: str, chance: random.Random) -> bytes:
    """One way in which a file goes bad."""
    place = chance.randrange(len(content))
    if kind == "flip":
        changed = content[place] ^ (1 << chance.randrange(8))
        return content[:place] + bytes([changed]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "swap":  # two stretches of equal length change places
        size = chance.randrange(1, 50)
        first, second = sorted(chance.sample(range(0, len(content) - size, size), 2))
        one, other = content[first : first + size], content[second : second + size]
        if one == other:
            return content[:-1]
        between = content[first + size : second]
        return content[:first] + other + between + one + content[second + size :]
    return content + bytes(chance.randrange(1, 9))


def test_a_thousand_damaged_files_are_refused(tmp_path: Path) -> None:
    content, chance, path = encoded(STATE), random.Random(0), tmp_path / "x"
    for number in range(1_000):
        path.write_bytes(damaged(content, ("flip", "cut", "swap", "more")[number % 4], chance))
        with pytest.raises(CheckpointError, match=r"damaged|no file of ppl-vi"):
            read(path)


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was opened")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    (tmp_path / "plain").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "within").write_bytes(signed(b"[]", pickle.dumps(Bomb())))
    with pytest.raises(CheckpointError, match="no file of ppl-vi"):
        read(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="not written by ppl-vi"):
        read(tmp_path / "within")


def signed(text: bytes, content: bytes, version: int = VERSION, length: int | None = None) -> bytes:
    """A file with a right digest, as someone hostile would make it."""
    head = struct.pack("<8sIQ", b"ppl-vi\r\n", version, len(text) if length is None else length)
    body = head + text + content
    return body + hashlib.sha256(body).digest()


TENSORS = safetensors.torch.save({"0": torch.ones(2)})


@pytest.mark.parametrize(
    "content",
    [
        signed(b"", TENSORS),
        signed(b"{}", TENSORS),
        signed(b'{"tensor":"1"}', TENSORS),
        signed(b'{"tensor":["0"]}', TENSORS),
        signed(b'{"module":"os"}', TENSORS),
        signed(b'{"dict":[[["key"],1]]}', TENSORS),
        signed(b'{"dict":7}', TENSORS),
        signed(b"[" * 100_000, TENSORS),
        signed(b"\xff\xfe", TENSORS),
        signed(json.dumps({"tensor": "0"}).encode(), TENSORS[:-4]),
        signed(json.dumps({"tensor": "0"}).encode(), b"\xff" * 64),
        signed(b"[]", TENSORS, length=2**63),
    ],
)
def test_a_hostile_file_with_a_right_digest_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="not written by ppl-vi"):
        decoded(content, "x")


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone' cannot be read \(No such file"):
        read(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match=r"format 2, .* Update ppl-vi"):
        decoded(signed(b"[]", TENSORS, version=2), "x")
    torch.save(torch.ones(2), tmp_path / "torch")
    with pytest.raises(CheckpointError, match=r"no file of ppl-vi.*result\.save"):
        read(tmp_path / "torch")


@pytest.mark.parametrize("what", ["open", "fsync", "replace"])
def test_the_last_good_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = tmp_path / "x"
    write(path, {"step": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    owner = "builtins" if what == "open" else "os"
    monkeypatch.setattr(f"{owner}.{what}", full)
    with pytest.raises(OSError, match="No space"):
        write(path, {"step": 2})
    monkeypatch.undo()
    assert read(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "there", {"step": 1})
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write(tmp_path / "link", {"step": 2})
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "there") == {"step": 2}
