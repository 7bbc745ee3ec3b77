"""What is installed: the whole package, its data, and nothing else."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ppl_vi
from ppl_vi.datasets import old_faithful

SOURCE = Path(os.environ.get("PPL_VI_SOURCE", Path(__file__).parents[1]))
INSTALLED = importlib.metadata.distribution("ppl-vi")
FILES = {file.as_posix() for file in INSTALLED.files or () if "__pycache__" not in file.parts}

in_source = pytest.mark.skipif(
    not (SOURCE / "ppl_vi").is_dir(), reason="the source is not here, only the package"
)
in_wheel = pytest.mark.skipif(
    "ppl_vi/models/__init__.py" not in FILES, reason="installed in place, where no file moved"
)


def sources() -> dict[str, Path]:
    """The Python files of the three folders, by where they are installed."""
    folders = {"ppl_vi": "ppl_vi", "models": "ppl_vi/models", "guides": "ppl_vi/guides"}
    return {
        f"{target}/{path.relative_to(SOURCE / folder).as_posix()}": path
        for folder, target in folders.items()
        for path in (SOURCE / folder).rglob("*.py")
    }


@in_wheel
def test_the_tests_import_what_is_installed() -> None:
    assert Path(ppl_vi.__file__) == INSTALLED.locate_file("ppl_vi/__init__.py")


@in_wheel
def test_nothing_else_lands_beside_the_package() -> None:
    tops = {file.split("/")[0] for file in FILES}
    assert tops == {"ppl_vi", f"ppl_vi-{INSTALLED.version}.dist-info"}


@in_wheel
@in_source
def test_the_wheel_holds_every_source_file_and_no_stale_one() -> None:
    assert {file for file in FILES if file.endswith(".py")} == set(sources())


@in_wheel
def test_the_wheel_holds_types_data_and_license() -> None:
    assert {"ppl_vi/py.typed", "ppl_vi/datasets/faithful.csv"} <= FILES
    assert f"ppl_vi-{INSTALLED.version}.dist-info/licenses/LICENSE" in FILES
    assert old_faithful().shape == (272, 2)


def test_models_and_guides_have_one_name() -> None:
    assert {"ppl_vi.models", "ppl_vi.guides"} <= set(sys.modules)
    assert not {"models", "guides"} & set(sys.modules)


LEAN = """
import sys, torch, pyro, pyro.distributions as dist
from ppl_vi import fit

def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

fit(model, "normal", torch.zeros(5), steps=200, progress=False).sample(2)
print(*{name.split(".")[0] for name in sys.modules})
"""


def test_a_fit_loads_nothing_heavy_that_it_does_not_need() -> None:
    """Each takes half a second and more, of a start that may be as long as the fit."""
    told = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    heavy = {"matplotlib", "pandas", "xarray", "arviz", "sklearn", "jinja2", "sympy"}
    assert "ppl_vi" in told.stdout.split()
    assert not heavy & set(told.stdout.split())


@in_source
def test_what_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *project["optional-dependencies"]["flows"]]
    declared = {re.split(r"[^\w.-]", line)[0] for line in every}
    imported = {
        name.split(".")[0]
        for path in sources().values()
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    providers = importlib.metadata.packages_distributions()
    outside = imported - sys.stdlib_module_names - {"ppl_vi"}
    assert [name for name in sorted(outside) if not declared & set(providers.get(name, ()))] == []
