"""Docstrings as the site's parser wants them: an extension of Griffe, which mkdocstrings reads with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Extension, Object

_CODE = re.compile(r"(``.*?``|`.*?`)")
_ARGUMENT = re.compile(r"\s*\*{1,2}\w+:")
_MARKUP = re.compile(r"[*\[]")


class HouseStyle(Extension):
    """Examples get their section's name; stars and brackets of formulas stay what they are."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("Example:\n", "Examples:\n")
            obj.docstring.value = "\n".join(_escaped(text.splitlines()))


def _escaped(lines: list[str]) -> Iterator[str]:
    """The lines, with Markdown's signs escaped where they are not code."""
    before, formula, example = "", False, False
    for line in lines:
        formula = line.startswith("    ") and (formula or not before)  # an indented paragraph
        example = bool(line) and (example or line.lstrip().startswith(">>>"))
        kept = formula or example or _ARGUMENT.match(line)
        yield line if kept else _without_markup(line)
        before = line


def _without_markup(line: str) -> str:
    parts = _CODE.split(line)
    return "".join(p if p.startswith("`") else _MARKUP.sub(r"\\\g<0>", p) for p in parts)
