"""Run the code of a page of the documentation.

The blocks of a page run in order, in one namespace. A ``text`` block right behind one of them is what
this prints; a comment ``<!-- not run: reason -->`` right before one leaves it out.

Usage: pages.py PAGE ...

runs the pages, writes the pictures that their code saves to docs/images, and what it prints into the
``text`` blocks.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"

_BLOCK = re.compile(
    r"^(?P<left_out><!-- not run: .+? -->\n+)?```python\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Ran:
    """A block that was run.

    Attributes:
        line: of the page, where its code begins.
        printed: what it printed.
        shown: what the page says that it prints; None where it says nothing.
        span: where that stands in the page's text.
    """

    line: int
    printed: str
    shown: str | None
    span: tuple[int, int]


def pages() -> list[Path]:
    """The README and every page of the documentation, those of the reference left out."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(page: Path) -> Iterator[Ran]:
    """Run a page's blocks in the current folder, from a fixed seed.

    Args:
        page: the file.

    Raises:
        Exception: whatever its code raises; the traceback names the line of the page.
    """
    text = page.read_text(encoding="utf-8")
    space = ModuleType(f"page_{page.stem}")
    torch.manual_seed(0)
    sys.modules[space.__name__] = space  # where dataclasses look themselves up
    try:
        for block in _BLOCK.finditer(text):
            if block["left_out"]:
                continue
            line = text.count("\n", 0, block.start("code"))
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * line + block["code"], str(page), "exec"), vars(space))
            yield Ran(line + 1, printed.getvalue(), block["shown"], block.span("shown"))
    finally:
        del sys.modules[space.__name__]


def _made_anew(page: Path) -> None:
    """Run a page and put what it prints where it says what it prints."""
    text = page.read_text(encoding="utf-8")
    for ran in reversed(list(run(page))):
        if ran.shown is not None:
            begin, end = ran.span
            text = text[:begin] + ran.printed.rstrip("\n") + "\n" + text[end:]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    named = [Path(name).resolve() for name in sys.argv[1:]]
    os.chdir(IMAGES)
    for one in named:
        _made_anew(one)
