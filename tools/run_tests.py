"""Run the tests against the installed package, from a folder without the source.

Arguments are passed on to pytest.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tests", Path(folder) / "tests")
        shutil.copy(ROOT / "pyproject.toml", folder)
        environment = {
            **os.environ,
            "PPL_VI_SOURCE": str(ROOT),
            "PPL_VI_SHARED": os.environ.get("PPL_VI_SHARED", str(ROOT.parent / "shared")),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",  # one process a core; small tensors gain nothing from more
        }
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "tests",
            "-n",
            "auto",
            "--durations=10",
            *arguments,
        ]
        if "-m" not in arguments:
            pytest += ["--doctest-modules", "--pyargs", "ppl_vi"]
        return subprocess.run(pytest, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
