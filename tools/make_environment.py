"""Make a virtual environment that has torch, downloading it only where none is at hand.

Usage: make_environment.py FOLDER DOWNLOAD [INDEX]

DOWNLOAD is what pip installs, for instance torch==2.13.0: an exact release is taken from whichever
index or folder pip is told of, and a CPU build of it there (2.13.0+cpu) counts as the newer one.
"""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

HAS_TORCH = """
import sys
from importlib.metadata import PackageNotFoundError, version
from pip._vendor.packaging.requirements import Requirement
try:
    sys.exit(not Requirement(sys.argv[1]).specifier.contains(version("torch"), prereleases=True))
except PackageNotFoundError:
    sys.exit(1)
"""


def main(folder: str, download: str, index: str = "") -> None:
    """Make the environment; a torch in the base Python is used through its site-packages."""
    dependencies = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    wanted = next(name for name in dependencies if name.startswith("torch"))
    python = str(Path(folder) / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder, with_pip=True, system_site_packages=has_torch(sys.executable, wanted))
    if not has_torch(python, wanted):
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *(["--index-url", index] if index else []), download], check=True)


def has_torch(python: str, wanted: str) -> bool:
    """Whether that Python has a torch that satisfies the project's requirement."""
    return subprocess.run([python, "-c", HAS_TORCH, wanted]).returncode == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
