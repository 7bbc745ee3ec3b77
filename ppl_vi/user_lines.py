"""Which line of the user's own code is running, or failed."""

from __future__ import annotations

import io
import linecache
import sys
import traceback
from pathlib import Path
from types import FrameType

import numpy as np
import pyro
import torch

_ENGINE = tuple(
    str(Path(module.__file__ or "").parent) for module in (torch, pyro, np, sys.modules["ppl_vi"])
)
_STANDARD_LIBRARY = str(Path(io.__file__).parent)


def raised_line(error: BaseException) -> str:
    """The user's line nearest to where an error was raised; empty where none took part."""
    steps = list(traceback.walk_tb(error.__traceback__))
    users = [step for step in steps if is_users(step[0].f_code.co_filename)]
    return _described(*users[-1]) if users else ""


def user_line(frame: FrameType | None) -> str:
    """The user's line that called, directly or not, what runs in the frame."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return _described(frame, frame.f_lineno) if frame is not None else "the program"


def is_users(path: str) -> bool:
    """Whether a file is the user's own: not of Python, of this package or of those it stands on."""
    standard = path.startswith(_STANDARD_LIBRARY) and "-packages" not in path
    return not standard and not path.startswith((*_ENGINE, "<"))


def _described(frame: FrameType, number: int) -> str:
    path = frame.f_code.co_filename
    code = linecache.getline(path, number).strip()
    place = f"{Path(path).name}, line {number}"
    return f"{place} ({code})" if code else place
