"""What tests of estimators share."""

from collections.abc import Callable

import pytest
from scipy.stats import t
from torch import Tensor


@pytest.fixture
def deviates() -> Callable[..., Tensor]:
    """How far off an exact value a mean is, in the largest errors that are put down to chance."""

    def found(draws: Tensor, exact: Tensor, false_alarm: float, rounding: float) -> Tensor:
        error = draws.std(0) / len(draws) ** 0.5
        limit = t.isf(false_alarm / 2, len(draws) - 1) * error
        return (draws.mean(0) - exact).abs() / limit.clamp(min=rounding)

    return found
