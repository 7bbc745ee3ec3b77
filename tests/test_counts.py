"""Numbers of steps, draws and parts, as users give them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest

from ppl_vi import fit
from ppl_vi.counts import check_count
from ppl_vi.guides import LowRankGuide


@pytest.mark.parametrize("count", [True, 0, -1, 2.0, "3", None, np.int64(0), np.float64(2)])
def test_what_is_no_positive_integer_is_told(count: Any) -> None:
    with pytest.raises(ValueError, match="parts must be a positive integer, not "):
        check_count("parts", count)


def test_there_may_be_a_least_number() -> None:
    check_count("draws", 25, least=25)
    with pytest.raises(ValueError, match="draws must be an integer of 25 or more, not 24"):
        check_count("draws", 24, least=25)


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    guide = LowRankGuide(model, rank=np.int64(2))
    files = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": np.int64(2)}
    result = fit(model, guide, steps=np.int64(3), restarts=np.int64(1), progress=False, **files)
    result.save(tmp_path / "result")
    assert result.sample(np.int64(4))["z"].shape == (4, 3)
    assert result.log_likelihood(np.int64(5)) == {}
