"""A stream of batches goes on where another one was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from ppl_vi.checkpoints.format import decoded, encoded
from ppl_vi.data.sources import Batch, data_source
from ppl_vi.data.streaming import Stream
from ppl_vi.randomness import random_state, use_random_state

ROWS = torch.arange(23.0)


class Noisy(Dataset[Tensor]):
    """Rows with noise that NumPy draws when they are read."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, row: int) -> Tensor:
        return ROWS[row] + float(np.random.rand())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


TABLE = TensorDataset(ROWS)
SOURCES: dict[str, Callable[[], Any]] = {
    "whole": lambda: (ROWS, None),
    "rows": lambda: (ROWS, 5),
    "data set": lambda: (Noisy(), 5),
    "loader": lambda: (DataLoader(TABLE, batch_size=4, shuffle=True), None),
    "loader of its own generator": lambda: (
        DataLoader(TABLE, batch_size=4, shuffle=True, generator=seeded()),
        None,
    ),
    "sampler of its own generator": lambda: (
        DataLoader(TABLE, batch_size=4, sampler=RandomSampler(TABLE, generator=seeded())),
        None,
    ),
    "workers": lambda: (DataLoader(Noisy(), batch_size=6, shuffle=True, num_workers=1), None),
}


def content(batch: Batch) -> list[float]:
    values: list[float] = batch.args[0].reshape(-1).tolist()
    return values


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("done", [0, 3, 6, 13])
def test_it_goes_on(name: str, done: int) -> None:
    """Other draws between batches included, and whatever was drawn before the new stream."""
    if name == "workers" and done in (3, 6):
        pytest.skip("processes take time")

    def steps(stream: Stream, count: int) -> list[Any]:
        return [(content(next(stream)), torch.rand(1).item()) for _ in range(count)]

    torch.manual_seed(0)
    np.random.seed(0)
    first = Stream(data_source(*SOURCES[name]()))
    steps(first, done)
    saved = encoded({"stream": first.state(), "random": random_state()})
    expected = steps(first, 9)
    torch.manual_seed(1)
    np.random.seed(1)
    second = Stream(data_source(*SOURCES[name]()))
    steps(second, 2)
    state = decoded(saved, "state")
    second.go_on(state["stream"])
    use_random_state(state["random"])
    assert steps(second, 9) == expected


def test_batches_that_were_given_back_come_first() -> None:
    first = Stream(data_source(ROWS, 5))
    runs = first.runs(7)
    first.give_back(runs[1:])
    second = Stream(data_source(ROWS, 5))
    second.go_on(decoded(encoded(first.state()), "state"))
    assert [content(next(first)) for _ in range(9)] == [content(next(second)) for _ in range(9)]
