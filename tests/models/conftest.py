"""What tests against NumPyro share."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

TWINS = Path(__file__).parents[1] / "numpyro_twins.py"

SETTINGS = ("jax_enable_x64", "jax_disable_most_optimizations")  # the second compiles faster


@pytest.fixture
def twins() -> Iterator[ModuleType]:
    """The NumPyro programs, with float64 the default on both sides."""
    pytest.importorskip("numpyro")
    import jax

    spec = importlib.util.spec_from_file_location("numpyro_twins", TWINS)
    module = importlib.util.module_from_spec(spec)
    before = {name: jax.config.read(name) for name in SETTINGS}, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    for name in SETTINGS:
        jax.config.update(name, True)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name, value in before[0].items():
            jax.config.update(name, value)
        torch.set_default_dtype(before[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start JAX come last: it warns whenever a process with its threads is forked."""
    items.sort(key=lambda item: "twins" in getattr(item, "fixturenames", ()))
