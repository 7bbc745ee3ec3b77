"""Python numbers that programs keep between calls: a counter, a switch, a running sum.

A captured step would leave them as they are, and whatever depends on them, even where that shows only
much later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

from ppl_vi.errors import CompileError
from ppl_vi.user_lines import is_users

_MOST_ENTRIES = 100

Numbers = dict[str, float]


def numbers_of(*programs: Callable[..., Any]) -> Numbers:
    """The numbers that programs can reach through themselves, closures and globals, by name."""
    found: Numbers = {}
    for program in programs:
        _collect(program, found, set())
    return found


def refuse_counters(before: Numbers, after: Numbers) -> None:
    """Raise CompileError where a call of the programs changed a number that they keep."""
    for name in before.keys() & after.keys():
        was, now = before[name], after[name]
        if was != now and not (was != was and now != now):  # NaN is as it was
            raise CompileError(
                f"the program counts: '{name}' went from {was} to {now} as it was called, which a "
                f"captured step would not do"
            )


def _collect(program: Any, found: Numbers, seen: set[int]) -> None:
    if id(program) in seen:
        return
    seen.add(id(program))
    if isinstance(program, partial):
        _collect(program.func, found, seen)
    owner = getattr(program, "__self__", program)
    function = getattr(program, "__func__", program)
    if not isinstance(function, FunctionType):
        function = vars(type(program)).get("__call__")
    if not isinstance(owner, FunctionType):
        for name, value in getattr(owner, "__dict__", {}).items():
            found.update(_numbers(f"self.{name}", value))
    if isinstance(function, FunctionType) and is_users(function.__code__.co_filename):
        for name, value in _named(function):
            found.update(_numbers(name, value))
            if isinstance(value, FunctionType):
                _collect(value, found, seen)


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function refers to outside itself."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet given a value
            continue
    own = function.__globals__
    yield from ((name, own[name]) for name in function.__code__.co_names if name in own)


def _numbers(name: str, value: Any) -> Numbers:
    if isinstance(value, (int, float)):
        return {name: value}
    if not isinstance(value, (dict, list)) or len(value) > _MOST_ENTRIES:
        return {}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return {f"{name}[{key!r}]": v for key, v in entries if isinstance(v, (int, float))}
