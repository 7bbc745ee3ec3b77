"""The expectation of a function of the guide's values: how it is called, and where it counts."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import Enumerate, Expectation, GuideError, fit

PROBABILITY = 0.6


def guide():
    with pyro.plate("data", 3):
        start = torch.full((3,), PROBABILITY)
        pyro.sample(
            "b", dist.Bernoulli(pyro.param("p", start, constraint=dist.constraints.unit_interval))
        )


def squared(b, t=0.45):
    return (b - t) ** 2


EXACT = 3 * (PROBABILITY * 0.55**2 + (1 - PROBABILITY) * 0.45**2)
FORMS = {
    "by name": lambda b: (b - 0.45) ** 2,
    "with a default": squared,
    "partial": functools.partial(squared, t=0.45),
    "by dict": lambda values: (values["b"] - 0.45) ** 2,
    "summed": lambda b: ((b - 0.45) ** 2).sum(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_function_may_name_its_sites_or_take_them_all(form):
    losses = [Expectation(FORMS[form], 500).loss(guide, guide) for _ in range(10)]
    # Of 5,000 draws: 4.5 standard errors.
    assert -sum(losses) / 10 == pytest.approx(EXACT, abs=4.5 * 3**0.5 * 0.05 / 5_000**0.5)


def test_one_value_per_element_is_taken_apart():
    exact = Expectation(FORMS["by name"], 1, Enumerate()).loss(guide, guide)
    assert -exact == pytest.approx(EXACT, rel=1e-6)
    with pytest.raises(GuideError, match=r"site 'b': Enumerate .* plate 'data'"):
        Expectation(lambda b: b.sum() ** 2, 1, Enumerate()).loss(guide, guide)


def test_a_function_that_cannot_be_called_is_told_how():
    with pytest.raises(GuideError, match=r"Name its arguments after sites of the guide \(b\)"):
        Expectation(lambda z: z - 1.0).loss(guide, guide)
    with pytest.raises(TypeError, match="f must be a function"):
        Expectation(3.0)


def test_an_expectation_is_maximised():
    def model():
        with pyro.plate("data", 3):
            pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))

    result = fit(
        model, guide, objective=Expectation(lambda b: b), steps=300, seed=0, progress=False
    )
    assert result.params["p"].min() > 0.85  # from 0.6
    assert result.bound > 2.55
