"""A failure of a user's program, and what was going on."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
from torch import Tensor

from ppl_vi.user_lines import raised_line

Numbered = Mapping[str, Tensor]


@dataclass(frozen=True)
class Call:
    """A call of a user's program.

    Attributes:
        program: a model or a guide.
        args: its arguments.
        kwargs: its keyword arguments.
        summed: the discrete sites that are run on all their states at once.
        rows: how many rows the arguments have, of how many in all, where they are a batch.
    """

    program: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    summed: Collection[str] = ()
    rows: tuple[int, int] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by the names that the program gives them."""
        try:
            named = dict(inspect.signature(self.program).bind(*self.args, **self.kwargs).arguments)
        except (TypeError, ValueError):
            named = {f"data[{i}]": leaf for i, leaf in enumerate(self.args)} | dict(self.kwargs)
        for name, value in list(named.items()):  # *args and **kwargs
            if isinstance(value, tuple):
                named |= {f"{name}[{i}]": leaf for i, leaf in enumerate(value)}
            elif isinstance(value, dict):
                named |= value
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Scene:
    """A failure, and what was going on.

    Attributes:
        what: the program, in words.
        cause: the error.
        call: of the program.
        sites: the values of the sites reached so far, by name.
        subsampled: by plate that takes rows by itself, how many it takes of how many.
    """

    what: str
    cause: BaseException
    call: Call
    sites: Numbered = field(default_factory=dict)
    subsampled: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """What torch or Pyro said, in one line."""
        lines = str(self.cause).strip().splitlines()
        return lines[0].strip().rstrip(".: ") if lines else ""

    @property
    def where(self) -> str:
        """The program and its line."""
        line = raised_line(self.cause)
        return f"{self.what}, {line}" if line else self.what

    def says(self, *patterns: str) -> bool:
        """Whether the error's words match one of the patterns."""
        return any(re.search(pattern, self.said) for pattern in patterns)

    def frame(self, *names: str) -> Mapping[str, Any]:
        """The variables of the innermost function that failed and has these; empty for none."""
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(self.cause.__traceback__)]
        return next((own for own in reversed(frames) if own.keys() >= set(names)), {})

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters so far, unconstrained."""
        return dict(pyro.get_param_store().named_parameters())
