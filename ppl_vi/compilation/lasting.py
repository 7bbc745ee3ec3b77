"""Let the tensors of a compiled loop last from one turn to the next.

torch writes C++ that makes every tensor of a loop's body anew in each turn, which takes most of the
time of a small step. Here that C++ is rewritten, line by line, to make them before the loop. What a
turn hands to the next changes places with what it was handed, so that neither is written while it is
read. A loop with a line of an unknown kind stays as it is, and so does one that is not on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

_LOOP = re.compile(r"^(?P<indent> *)while \(1\) \{\n(?P<turn>.*?)^(?P=indent)\}\n", re.M | re.S)
_CALL = r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_%s\);"
_KINDS = {
    "sizes": r"static constexpr int64_t .*;",
    "handle": r"AtenTensorHandle (?P<new>\w+)_handle;(  // output buffer)?",
    "owner": r"RAIIAtenTensorHandle (?P<new>\w+)\((?P=new)_handle\);",
    "made": _CALL % r"empty_strided\(.*, cached_torch_device_type_cpu, .*, &(?P<new>\w+)_handle\)",
    "argument": _CALL % r"assign_tensors_out\((?P<old>\w+), &(?P<new>\w+)_handle\)",
    "view": r"auto (?P<new>\w+) = wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\("
    r"(?P<old>\w+), [\w, ]*\)\);( (?P=old)\.reset\(\);)?  // (alias|reuse)",
    "renamed": r"auto (?P<new>\w+) = std::move\((?P<old>\w+)\);  // reuse",
    "freed": r"(?P<old>\w+)\.reset\(\);",
    "handed": r"(?P<new>\w+) = std::move\((?P<old>\w+)\);",
    "asked": _CALL % r"item_bool\((?P<old>\w+), &(?P<new>\w+)\)",
    "other": r"|//.*|bool \w+;|(int32_t|auto) var_\d+ = \w+;|if \(!\w+\) break;|cpp_fused\w*\(.*\);"
    r"|if \(_check_aoti_runtime_check_inputs_env\(\)\) \{ assert_size_stride\(.*\); \}"
    r"|"
    + _CALL % r"(cpu_\w+|proxy_executor_call_function)\((?!.*std::move).*\)"
    + "|"
    + _CALL % r"new_uninitialized_tensor\(&\w+_handle\)",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Within it torch compiles loops whose tensors last; plain ones, where it has changed its ways."""
    try:
        from torch._inductor.codecache import AotCodeCompiler

        compiles: Any = AotCodeCompiler.compile
    except (ImportError, AttributeError):
        yield
        return

    def compile_lasting(graph: Any, code: Any, *others: Any, **options: Any) -> Any:
        return compiles(graph, lasting(code) if isinstance(code, str) else code, *others, **options)

    with patch.object(AotCodeCompiler, "compile", compile_lasting):
        yield


def lasting(code: str) -> str:
    """The same C++, with the tensors of each loop made before it."""
    return _LOOP.sub(_rewritten, code)


def _rewritten(found: re.Match[str]) -> str:
    try:
        lines = [_line(text.strip()) for text in found["turn"].splitlines()]
        loop = _Loop(found.string[: found.start()], lines)
    except _UnknownError:
        return found[0]
    indent = found["indent"]
    before = "".join(f"{indent}{text}\n" for text in loop.before)
    within = "".join(f"{indent}    {text}\n" for text in loop.within)
    return f"{before}{indent}while (1) {{\n{within}{indent}}}\n"


class _UnknownError(Exception):
    """The loop does something that was not foreseen."""


@dataclass(frozen=True)
class _Line:
    """A line of C++: its kind, which variable it makes or gives a value, and from which other one."""

    kind: str
    text: str
    new: str
    old: str


def _line(text: str) -> _Line:
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(text):
            names = match.groupdict()
            return _Line(kind, text, names.get("new") or "", names.get("old") or "")
    raise _UnknownError


@dataclass
class _Loop:
    """A loop in the making.

    Attributes:
        preceding: the code before the loop.
        lines: of a turn, as torch wrote them.
        before: lines that will stand before the loop.
        within: lines of a turn.
    """

    preceding: str
    lines: Sequence[_Line]
    before: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._see_memory()
        for line in self.lines:
            getattr(self, f"_{line.kind}")(line)

    def _see_memory(self) -> None:
        """Find out whose memory each tensor is in, and which memory can last."""
        self._arguments = {line.new: line.old for line in self.lines if line.kind == "argument"}
        self._home: dict[str, str] = {}
        self._views: set[str] = set()
        for line in self.lines:
            if line.kind in ("made", "view", "renamed"):
                self._home[line.new] = self._home.get(line.old, line.old or line.new)
            if line.kind == "view" or (line.kind == "renamed" and line.old in self._views):
                self._views.add(line.new)
        self._changed = {line.new for line in self.lines if self._is_changed(line)}
        sources = [line.old for line in self.lines if line.kind == "handed"]
        handed = set(sources)
        if len({self._home.get(name, name) for name in handed}) < len(sources):
            raise _UnknownError  # one tensor cannot change places with two
        # A view cannot change places with a whole tensor: its memory is given away, and made anew.
        given = {self._home[name] for name in handed & self._views}
        self._lasting = {line.new for line in self.lines if line.kind == "made"} - given
        self._moving = {self._home[name] for name in handed if self._lasts(name)}
        self._places = {
            line.new for line in self.lines if line.kind == "handed" and self._lasts(line.old)
        }

    def _is_changed(self, line: _Line) -> bool:
        """Whether a turn hands a tensor on that it was handed itself, and has changed in place."""
        return line.kind == "handed" and self._arguments.get(line.old) == line.new

    def _lasts(self, name: str) -> bool:
        """Whether the tensor is in memory made before the loop."""
        return self._home.get(name) in self._lasting

    def _stays(self, name: str) -> bool:
        """Whether that is the same memory in each turn."""
        return self._lasts(name) and self._home[name] not in self._moving

    def _sizes(self, line: _Line) -> None:
        self.before.append(line.text)

    def _made(self, line: _Line) -> None:
        (self.before if self._lasts(line.new) else self.within).append(line.text)

    def _handle(self, line: _Line) -> None:
        if line.new not in self._arguments:
            self._made(line)

    _owner = _handle

    def _argument(self, line: _Line) -> None:
        self.within.append(f"auto& {line.new} = {line.old};")

    def _view(self, line: _Line) -> None:
        text = line.text
        if self._lasts(line.old) or line.old in self._arguments:
            text = text.replace(f" {line.old}.reset();", "")
        (self.before if self._stays(line.old) else self.within).append(text)

    def _renamed(self, line: _Line) -> None:
        if line.old in self._arguments:
            raise _UnknownError
        if self._lasts(line.old):  # not moved from: it is there in the next turn too
            first = self._stays(line.old) or line.old not in self._views
            (self.before if first else self.within).append(f"auto& {line.new} = {line.old};")
        else:
            self.within.append(line.text)

    def _freed(self, line: _Line) -> None:
        name = line.old
        kept = {*self._arguments, *self._places, *self._changed}
        if name not in kept and not self._lasts(name):
            self.within.append(line.text)

    def _handed(self, line: _Line) -> None:
        if line.new in self._changed:
            return
        if self._home.get(line.old, line.old) in self._arguments:  # the next turn could write to it
            raise _UnknownError
        if not self._lasts(line.old):
            self.within.append(line.text)
            return
        empty = f"RAIIAtenTensorHandle {line.new};" in self.preceding
        # The first turn was handed what belongs to the caller, and is not to be written to.
        self.before += [
            f"AtenTensorHandle {line.new}_own;",
            _CALL.replace("\\", "") % f"clone({line.old if empty else line.new}, &{line.new}_own)",
            f"{line.new} = RAIIAtenTensorHandle({line.new}_own);",
        ]
        self.within.append(f"std::swap({line.new}, {line.old});")

    def _asked(self, line: _Line) -> None:
        self.within.append(f"{line.new} = *static_cast<const bool*>({line.old}.data_ptr());")

    def _other(self, line: _Line) -> None:
        self.within.append(line.text)
