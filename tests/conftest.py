"""What all tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Every test starts with an empty parameter store and the same random state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def shared_data() -> Path:
    """The folder of shared data sets; the test is skipped where it is absent."""
    root = Path(os.environ.get("PPL_VI_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip("the shared data sets are not here")
    return root / "data"


@pytest.fixture
def usual_interrupts() -> Iterator[None]:
    """Whoever starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
