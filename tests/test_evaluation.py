"""The final ELBO is drawn in parts; none is lost between them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import evaluation, fit


def model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize("rows", [997, 599, 20])
def test_all_draws_are_taken(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    whole = evaluation.run

    def counted(structure, pair, draw, count):
        counts.append(count)
        return whole(structure, pair, draw, count)

    monkeypatch.setattr(evaluation, "run", counted)
    fit(model, "normal", torch.zeros(rows), steps=1, progress=False)
    assert sum(counts) == 1_000
    assert max(counts) * (rows + 1) <= 500_000
