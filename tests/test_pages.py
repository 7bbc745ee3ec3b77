"""The code of the README and of the documentation runs, and the site has what it should."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ppl_vi
from ppl_vi import registry
from ppl_vi.conjugacy import densities, families, values

SOURCE = Path(os.environ.get("PPL_VI_SOURCE", Path(__file__).parents[1]))
DOCS = SOURCE / "docs"
NUMBER = re.compile(r"[-\N{MINUS SIGN}]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

SLOW = {
    f"docs/{name}.md" for name in ("tutorial", "estimators", "trust", "cavi", "vae", "coming_from")
}
"""Pages that take long."""

if not DOCS.is_dir():
    pytest.skip("the source is not here, only the package", allow_module_level=True)


def _runner() -> Any:
    """The script that runs pages."""
    spec = importlib.util.spec_from_file_location("pages", SOURCE / "tools" / "pages.py")
    assert spec and spec.loader
    module = sys.modules["pages"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNNER = _runner()
NAMES = [page.relative_to(SOURCE).as_posix() for page in RUNNER.pages()]


@pytest.fixture
def _registries_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What pages add is forgotten afterwards."""
    rules = {name: list(entered) for name, entered in values._RULES.items()}
    monkeypatch.setattr(values, "_RULES", rules)
    monkeypatch.setattr(densities, "_DENSITIES", dict(densities._DENSITIES))
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    yield
    torch.set_default_dtype(torch.float32)


def close(printed: str, shown: str) -> bool:
    """Whether words are alike, and numbers to one in the last digit shown."""
    words = [NUMBER.sub("#", text).split() for text in (printed, shown)]
    if words[0] != words[1]:
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(abs(_value(one) - _value(other)) <= 1.001 * _unit(other) for one, other in pairs)


def _value(number: str) -> float:
    return float(number.replace("\N{MINUS SIGN}", "-"))


def _unit(number: str) -> float:
    """One in the last digit: 0.01 of "3.14"; whole numbers must be equal."""
    mantissa, _, exponent = number.partition("e")
    _, point, digits = mantissa.partition(".")
    return 10.0 ** (int(exponent or 0) - len(digits)) if point else 0.0


def test_what_is_shown_is_compared() -> None:
    assert close("mean 1.23\n  n 10", "mean  1.22 n 10\n")
    assert not close("mean 1.23", "mean 1.21")
    assert not close("mean 1.23", "sd 1.23")
    assert not close("n 10", "n 11")
    assert not close("1.0 2.0", "1.0")


# ArviZ 0.23 sorts tables in place, which the pandas of 2026 announces to end.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]
)
@pytest.mark.usefixtures("_registries_kept")
def test_the_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block runs, prints what is said, and makes the pictures that are shown with it."""
    page = SOURCE / name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for ran in RUNNER.run(page):
        if ran.shown is not None:
            assert close(ran.printed, ran.shown), f"{name}:{ran.line} prints\n{ran.printed}"
    text = page.read_text(encoding="utf-8")
    saved = set(re.findall(r"savefig\(\"(.+?)\"", text))
    assert saved == {file.name for file in tmp_path.glob("*.png")}
    assert saved <= set(re.findall(r"images/(\S+?\.png)", text))


@pytest.mark.slow
@pytest.mark.usefixtures("_registries_kept")
def test_the_page_on_extending_holds_in_double_precision() -> None:
    """Its comparisons are then to 1e-7."""
    torch.set_default_dtype(torch.float64)
    assert len(list(RUNNER.run(DOCS / "extending.md"))) > 4


def test_every_public_name_is_in_the_reference() -> None:
    """Once each."""
    listed = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    public = [
        f"{module.__name__}.{name}"
        for module in (ppl_vi, ppl_vi.models, ppl_vi.guides)
        for name in module.__all__
    ]
    assert [name for name in public if listed.count(name) != 1] == []
    assert len(set(listed)) == len(listed)


def test_every_picture_is_shown() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in RUNNER.pages())
    assert [p.name for p in (DOCS / "images").iterdir() if f"images/{p.name}" not in texts] == []


def test_names_of_other_libraries_exist() -> None:
    """In the tables of equivalents; PyMC, which is not installed, is left out."""
    pytest.importorskip("numpyro")
    text = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:pyro|numpyro|sklearn)\.[\w.]+)", text))
    names |= {f"{p}.infer.autoguide.{n}" for p in ("pyro", "numpyro") for n in AUTOGUIDES}
    assert len(names) > 40
    assert [name for name in sorted(names) if not exists(name)] == []


AUTOGUIDES = (
    "AutoDelta",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
)


def exists(name: str) -> bool:
    """Whether a dotted name can be imported or looked up."""
    parent, _, last = name.rpartition(".")
    return hasattr(importlib.import_module(parent), last)


def test_what_stands_beside_them_can_be_written() -> None:
    """The calls of our classes in the tables' right columns."""
    text = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    cells = [row.split(" | ")[-1] for row in text.splitlines() if row.startswith("| ")]
    calls = [c for cell in cells for c in re.findall(r"`([A-Z]\w+\(.*?\))`", cell)]
    inside = [c for cell in cells for c in re.findall(r"fit\(([A-Z]\w+\(.*?\)), ", cell)]
    space = {**vars(ppl_vi.models), **vars(ppl_vi), "K": 2, "D": 3, "V": 4}
    assert len(calls + inside) > 12
    for call in calls + inside:
        eval(call, dict(space))


def test_every_page_has_a_place_in_the_navigation() -> None:
    lines = (SOURCE / "mkdocs.yml").read_text().splitlines()
    placed = {line.split()[-1] for line in lines if line.lstrip().startswith("- ")}
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert pages - placed == set()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    config = ["--config-file", str(SOURCE / "mkdocs.yml")]
    done = subprocess.run([*command, *config], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "https://fonts" not in (tmp_path / "index.html").read_text(encoding="utf-8")
