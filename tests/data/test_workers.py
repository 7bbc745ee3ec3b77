"""What is told of processes that read data."""

from __future__ import annotations

import re
import traceback
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ppl_vi.data import workers
from ppl_vi.data.workers import worker_deaths_told
from ppl_vi.errors import DataError


class Broken(Dataset[torch.Tensor]):
    """Its rows cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no such row"), ConnectionResetError("no host")])
def test_what_a_data_set_raises_in_a_worker_is_no_death(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)) as raised, worker_deaths_told():
        list(DataLoader(Broken(error), num_workers=1))
    traceback.clear_frames(raised.tb)  # which hold the worker: its end would take five seconds


@pytest.mark.parametrize("said", ["", "Connection reset by peer.\nmore"])
def test_a_broken_pipe_is_a_death(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise EOFError(*([said] if said else []))

    monkeypatch.setattr(workers, "_SECONDS", 0.0)
    monkeypatch.setattr("torch.utils.data._utils.fetch._MapDatasetFetcher.fetch", broken)
    told = re.escape(f"died: DataLoader worker gone ({said.split('.')[0] or 'EOFError'}). It may")
    with pytest.raises(DataError, match=told), worker_deaths_told():
        list(DataLoader(Broken(KeyError())))


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="sizes"), worker_deaths_told():
        raise RuntimeError("sizes differ\nin the DataLoader worker's batch")
    with pytest.raises(EOFError), worker_deaths_told():
        raise EOFError
