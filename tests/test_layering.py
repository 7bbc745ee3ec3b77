"""The way of imports: models and guides stand on the engine, and on nothing of each other."""

import ast
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("PPL_VI_SOURCE", Path(__file__).parents[1]))
pytestmark = pytest.mark.skipif(
    not (SOURCE / "ppl_vi").is_dir(), reason="the source is not here, only the package"
)
TOP = {"ppl_vi/__init__.py", "ppl_vi/__main__.py", "ppl_vi/demo.py", "ppl_vi/vae_demo.py"}


def imports() -> Iterator[tuple[str, str]]:
    """Every (file, imported module or name) of the three folders; ruff forbids relative ones."""
    for folder in ("ppl_vi", "models", "guides"):
        for path in sorted((SOURCE / folder).rglob("*.py")):
            file = path.relative_to(SOURCE).as_posix()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((file, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)
                elif isinstance(node, ast.Attribute) and ast.unparse(node) == "pyro.poutine":
                    yield file, "pyro.poutine"  # reached without an import of its own


def offenders(module: str, allowed: str | tuple[str, ...]) -> list[tuple[str, str]]:
    return [
        (file, name)
        for file, name in imports()
        if (name + ".").startswith(module + ".") and not file.startswith(allowed)
    ]


def test_only_program_touches_poutine() -> None:
    assert offenders("pyro.poutine", "ppl_vi/program/") == []


def test_the_engine_does_not_import_models_or_guides() -> None:
    found = offenders("ppl_vi.models", "models/") + offenders("ppl_vi.guides", "guides/")
    assert [pair for pair in found if pair[0] not in TOP] == []


def test_there_is_one_name_for_models_and_guides() -> None:
    assert offenders("models", ()) + offenders("guides", ()) == []


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(SOURCE).as_posix().replace("/", ".")
        for folder in ("ppl_vi", "models", "guides")
        for path in (SOURCE / folder).rglob("__init__.py")
    }
    names = {name if name.startswith("ppl_vi") else f"ppl_vi.{name}" for name in folders}
    assert names == set(settings["packages"])
