"""Pages of the site that are files of the repository's root: one text, in both places.

A hook of MkDocs. Links between the root and ``docs/`` work on the site as they do in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README": "index.md", "CONTRIBUTING": "contributing.md", "CHANGELOG": "changelog.md"}

_NAMED_BY_FILE = re.compile(r"\[(?:docs/)?\w+\.md\](\((?:docs/|\.\./)?(\w+)\.md)")
_INTO_DOCS = re.compile(r"(\]\(|src=\")docs/")
_INTO_ROOT = re.compile(rf"\]\((?:\.\./)?({'|'.join(PAGES)})\.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the root's files."""
    for name, page in PAGES.items():
        text = _INTO_DOCS.sub(r"\1", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Send links to the root's files to their pages, and call pages by their titles."""
    named = _NAMED_BY_FILE.sub(lambda link: f"[{_title(link[2])}]{link[1]}", markdown)
    return _INTO_ROOT.sub(lambda link: f"]({PAGES[link[1]]}", named)


def _title(name: str) -> str:
    """The heading of a page."""
    folder = ROOT if name in PAGES else ROOT / "docs"
    return (folder / f"{name}.md").read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
