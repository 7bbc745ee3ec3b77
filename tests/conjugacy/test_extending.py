"""The code of ``docs/extending.md`` runs, and what it says holds."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ppl_vi.conjugacy import densities, families, values

SOURCE = Path(os.environ.get("PPL_VI_SOURCE", Path(__file__).parents[2]))
PAGE = SOURCE / "docs" / "extending.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the source is not here, only the package")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_page_on_extending_runs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 its comparisons are to 1e-7; what it adds is forgotten afterwards."""
    rules = {name: list(entered) for name, entered in values._RULES.items()}
    monkeypatch.setattr(values, "_RULES", rules)
    monkeypatch.setattr(densities, "_DENSITIES", dict(densities._DENSITIES))
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 4
    page = ModuleType("extending")
    monkeypatch.setitem(
        sys.modules, page.__name__, page
    )  # where its dataclasses look themselves up
    torch.set_default_dtype(dtype)
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), vars(page))
    finally:
        torch.set_default_dtype(torch.float32)
