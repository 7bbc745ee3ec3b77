"""Nested plain values and tensors as bytes, and back.

    magic (8) | version (4) | length of JSON (8) | JSON | safetensors | SHA-256 (32)

Numbers are little-endian. The digest is over all bytes before it and is checked before any of them is
parsed; neither JSON nor safetensors can name code to run.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ppl_vi.errors import CheckpointError

State: TypeAlias = Any
"""Nested dicts (keys are str or int), lists and tuples of None, bool, int, float, str and tensors."""

VERSION = 1
_MAGIC = b"ppl-vi\r\n"
_HEAD = struct.Struct("<8sIQ")
_DIGEST = hashlib.sha256().digest_size


def encoded(state: State) -> bytes:
    """The bytes of a state; tensors are stored as they are on the CPU.

    Raises:
        TypeError: a value is none of the plain ones; its place is named.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(state, "state", tensors), separators=(",", ":")).encode()
    content = safetensors.torch.save(tensors)
    head = _HEAD.pack(_MAGIC, VERSION, len(text))
    digest = hashlib.sha256()
    for part in (head, text, content):
        digest.update(part)
    return b"".join((head, text, content, digest.digest()))


def decoded(content: bytes, name: str) -> State:
    """The state of bytes.

    Args:
        content: what ``encoded`` gave.
        name: how errors name it.

    Raises:
        CheckpointError: these are not the bytes of a state, not all of them, not unchanged, or those
            of a newer format.
    """
    if not content.startswith(_MAGIC):
        raise CheckpointError(
            f"{name} is no file of ppl-vi: it begins otherwise. Name one that fit(checkpoint=...) or "
            f"result.save() has written."
        )
    body, digest = memoryview(content)[:-_DIGEST], content[-_DIGEST:]
    if len(body) < _HEAD.size or hashlib.sha256(body).digest() != digest:
        raise CheckpointError(
            f"{name} is damaged: its {len(content):,} bytes do not have the SHA-256 at their end, so "
            f"that they were changed or cut off after they were written. Use another copy."
        )
    _, version, length = _HEAD.unpack(body[: _HEAD.size])
    if version > VERSION:
        raise CheckpointError(
            f"{name} has format {version}, and this release of ppl-vi knows formats up to {VERSION}. "
            f"Update ppl-vi."
        )
    text, rest = body[_HEAD.size :][:length], body[_HEAD.size :][length:]
    try:
        return _restored(json.loads(bytes(text)), safetensors.torch.load(bytes(rest)))
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{name} was not written by ppl-vi: its digest is right, but it does not hold a state "
            f"({type(error).__name__}). Use a file of your own."
        ) from error


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """What JSON can hold; tensors are put aside under numbers."""
    if isinstance(value, Tensor):
        own, number = value.detach().cpu().contiguous(), str(len(tensors))
        tensors[number] = own.clone()  # safetensors refuses tensors that share memory
        return {"tensor": number}
    if isinstance(value, Mapping):
        return {"dict": [_item(key, own, place, tensors) for key, own in value.items()]}
    if isinstance(value, (list, tuple)):
        members = [_plain(own, f"{place}[{i}]", tensors) for i, own in enumerate(value)]
        return {"tuple": members} if isinstance(value, tuple) else members
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold. Keep numbers, strings, "
        f"tensors, and lists and dicts of them."
    )


def _item(key: Any, value: Any, place: str, tensors: dict[str, Tensor]) -> list[Any]:
    if type(key) not in (int, str):
        raise TypeError(f"{place} has the key {key!r}, and a checkpoint's keys are str or int.")
    return [key, _plain(value, f"{place}[{key!r}]", tensors)]


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(own, tensors) for own in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_restored(content, tensors))
    if kind == "dict":
        return {key: _restored(own, tensors) for key, own in content}
    raise ValueError(kind)


__all__ = ["VERSION", "State", "decoded", "encoded"]
