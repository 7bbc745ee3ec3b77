"""Docstrings as the site's parser wants them: an extension of Griffe, which mkdocstrings reads with."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_CODE = re.compile(r"(``.*?``|`.*?`)")
_VERBATIM = re.compile(r"\s*(>>>|\.\.\.|\*{1,2}\w+:)")


class HouseStyle(Extension):
    """Examples get their section's name, and a star in a formula stays a star."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            lines = obj.docstring.value.replace("Example:\n", "Examples:\n").splitlines()
            obj.docstring.value = "\n".join(map(_stars_kept, lines))


def _stars_kept(line: str) -> str:
    """Stars outside code would make what stands between them slanted."""
    if _VERBATIM.match(line):
        return line
    parts = _CODE.split(line)
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in parts)
