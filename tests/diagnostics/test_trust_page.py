"""The code of ``docs/trust.md`` runs, and what it says holds."""

import os
import re
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("PPL_VI_SOURCE", Path(__file__).parents[2]))
PAGE = SOURCE / "docs" / "trust.md"


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not here, only the package")
def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, names)
    assert (tmp_path / "report.html").is_file()
    assert names["khat"].usable and "too narrow" in names["found"].words
