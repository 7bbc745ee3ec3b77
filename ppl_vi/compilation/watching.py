"""Notice what a captured graph could not repeat, while a program is captured.

A graph repeats tensor operations alone. What a program does outside them (turn a tensor into a Python
number or an array, print, ask Python's or NumPy's random generators) would happen once, at the
capture, and then never again.
"""

from __future__ import annotations

import io
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_vi.errors import CompileError, GuideError, ModelError
from ppl_vi.observing import Observer, by_name, written
from ppl_vi.user_lines import raised_line, user_line

_ONE_AT_A_TIME = threading.RLock()
"""The standard output is everyone's."""
_ESCAPES: dict[Any, str] = {
    Tensor.numpy: "turns a tensor into a NumPy array",
    Tensor.__array__: "turns a tensor into a NumPy array",
    Tensor.tolist: "turns a tensor into a Python list",
    Tensor.__repr__: "prints a tensor",
    Tensor.__format__: "prints a tensor",
}


@contextmanager
def watched() -> Iterator[None]:
    """Run a block that is captured.

    Raises:
        CompileError: the block does what a graph cannot repeat; the message names the line.
    """
    before = random.getstate(), str(np.random.get_state(legacy=False))
    silent = redirect_stdout(_Silence())
    with failing_as_uncaptured(), _ONE_AT_A_TIME, silent, _without_other_draws(), _Escapes():
        yield
    if random.getstate() != before[0]:
        raise CompileError("the program draws from Python's random module, outside torch")
    if str(np.random.get_state(legacy=False)) != before[1]:
        raise CompileError("the program draws from NumPy's random generator, outside torch")


@contextmanager
def failing_as_uncaptured() -> Iterator[None]:
    """Run a block of a user's programs; an error of theirs is a reason not to capture them."""
    try:
        yield
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(_reason(error)) from error


_GENERATORS: tuple[tuple[Any, Any, str], ...] = (
    (random, getattr(random.random, "__self__", None), "Python's random module"),
    (np.random, getattr(np.random.rand, "__self__", None), "NumPy's random generator"),
)


@contextmanager
def _without_other_draws() -> Iterator[None]:
    """Let calls to random generators that no graph repeats fail with the user's line."""
    thread, replaced = threading.get_ident(), []

    def refusing(function: Any, whose: str) -> Any:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            line = user_line(sys._getframe(1))
            if threading.get_ident() != thread or line == "the program":
                return function(*args, **kwargs)
            raise CompileError(f"{line} draws from {whose}, outside torch")

        return refuse

    for module, generator, whose in _GENERATORS:
        for name, function in list(vars(module).items()):
            own = generator is not None and getattr(function, "__self__", None) is generator
            if own and "state" not in name and "seed" not in name:
                replaced.append((module, name, function))
                setattr(module, name, refusing(function, whose))
    try:
        yield
    finally:
        for module, name, function in replaced:
            setattr(module, name, function)


class _Escapes(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ESCAPES:
            raise CompileError(f"{user_line(sys._getframe(1))} {_ESCAPES[func]}")
        return func(*args, **(kwargs or {}))


class _Silence(io.TextIOBase):
    """A standard output that the capturing thread may not print to."""

    def __init__(self) -> None:
        self._thread, self._usual = threading.get_ident(), sys.stdout

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._usual.write(text)
        raise CompileError(f"{user_line(sys._getframe(1))} prints")


class Undo(Observer):
    """Undo the changes in place that a block makes to tensors from outside it."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in (*written(func, args, kwargs), *_undeclared(func, args, kwargs)):
            self._keep(tensor)
        return func(*args, **kwargs)

    def _keep(self, tensor: Tensor) -> None:
        if id(tensor) not in self._kept:
            self._kept[id(tensor)] = tensor, tensor.detach().clone()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            # The latest first: a view may have been kept after the tensor that it is a view of.
            for tensor, value in reversed(list(self._kept.values())):
                if tensor.numel() == value.numel():
                    # A product with a vector squeezes its own result in place.
                    tensor.copy_(value.reshape(tensor.shape))


_UNDECLARED = (torch.ops.aten.native_batch_norm.default, torch.ops.aten.cudnn_batch_norm.default)


def _undeclared(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The buffers that operations change without declaring it."""
    if func not in _UNDECLARED:
        return []
    given = by_name(func, args, kwargs)
    buffers = [given.get(name) for name in ("running_mean", "running_var")]
    return [buffer for buffer in buffers if isinstance(buffer, Tensor)]


def _reason(error: BaseException) -> str:
    """Why the capture failed: the line of the program, the site, and what torch said."""
    cause = _first_cause(error)
    first = str(cause).strip().partition("\n")[0].rstrip(".")
    said = f"cannot be captured ({type(cause).__name__}: {first})"
    line = raised_line(cause) or raised_line(error)
    if line:
        return f"{line} {said}"
    where = str(error) if isinstance(error, (ModelError, GuideError)) else ""
    found = where.partition("(")[2].partition(")")[0] if "site '" in where else ""
    return f"the program {found + ' ' if found else ''}{said}"


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
