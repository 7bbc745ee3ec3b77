"""The recommended estimators are right, are the best, and can be used as they are."""

import itertools
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import (
    ELBO,
    DisARM,
    Enumerate,
    ForwardKL,
    GuideError,
    ImportanceWeightedELBO,
    LeaveOneOut,
    MovingAverage,
    Pathwise,
    Recommendation,
    ScoreFunction,
    fit,
    recommend_estimators,
)
from ppl_vi.diagnostics.recommendation import in_short

DATA = torch.linspace(-1.0, 2.0, 12)


def mixed(x):
    """A short chain of coins and a location."""
    first = pyro.sample("first", dist.Bernoulli(0.3))
    second = pyro.sample("second", dist.Bernoulli(0.2 + 0.5 * first))
    mean = pyro.sample("mean", dist.Normal(second, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean + second, 1.0), obs=x)


def mixed_guide(x):
    for name in ("first", "second"):
        logit = pyro.param(f"{name}_logit", torch.tensor(0.3))
        pyro.sample(name, dist.Bernoulli(logits=logit))
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))


@dataclass(frozen=True)
class Halved(ScoreFunction):
    """Half the gradient: wrong on purpose, and less noisy for it."""

    def term(self, draws: Any, credit: torch.Tensor, state: Any) -> torch.Tensor:
        return 0.5 * super().term(draws, credit, state)


def recommend(*args: Any, **options: Any) -> Any:
    return recommend_estimators(*args, **{"num_draws": 40, "seed": 0, "progress": False, **options})


@pytest.fixture(scope="module")
def coins():
    """With a clock by which every draw takes as long, so that no busy machine changes what is best."""
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_vi.diagnostics.gradient_draws._now", lambda: float(next(ticks)))
        return recommend(chain, chain_guide)


def chain():
    first = pyro.sample("first", dist.Bernoulli(0.3))
    second = pyro.sample("second", dist.Bernoulli(0.2 + 0.5 * first))
    pyro.sample("x", dist.Normal(second, 1.0), obs=torch.tensor(0.8))


def chain_guide():
    for name in ("first", "second"):
        logit = pyro.param(f"{name}_logit", torch.tensor(0.3))
        pyro.sample(name, dist.Bernoulli(logits=logit))


def test_a_small_chain_of_coins_is_enumerated(coins):
    assert isinstance(coins, Recommendation)
    assert coins == {"first": Enumerate(), "second": Enumerate()}
    assert set(coins.reasons) == set(coins)
    assert coins.reasons["first"].startswith("Enumerate(): no noise")
    assert coins.table.attrs["reference"].startswith("exact")
    assert "first: Relax()" in coins.table.index.get_level_values("estimator")
    assert "first: Pathwise()" not in coins.table.index.get_level_values("estimator")


def test_it_prints_an_aligned_table(coins):
    lines = repr(coins).splitlines()
    assert lines[0].split() == ["site", "estimator", "reason"]
    where = [
        line.index(word) for line, word in zip(lines, ("reason", *["no noise"] * 2), strict=True)
    ]
    assert lines[1].startswith("first   Enumerate()  ") and where[1] == where[2]


def test_a_location_is_pathwise_and_the_choice_is_accepted():
    few = [Pathwise(), ScoreFunction(LeaveOneOut()), ScoreFunction(MovingAverage())]
    few_coins = {"first": [Enumerate(), DisARM()], "second": [DisARM(), Enumerate()]}
    chosen = recommend(mixed, mixed_guide, DATA, candidates={"mean": few, **few_coins})
    assert isinstance(chosen["mean"], Pathwise)
    assert "times less than ScoreFunction(" in chosen.reasons["mean"]
    assert set(chosen.reasons) == {"first", "second", "mean"}
    result = fit(
        mixed, mixed_guide, DATA, steps=3, progress=False, objective=ELBO(estimators=chosen)
    )
    assert result.estimators["mean"] == repr(chosen["mean"])


def test_what_is_biased_is_not_recommended():
    biased = Halved(LeaveOneOut())
    chosen = recommend(
        chain,
        chain_guide,
        num_draws=50,
        objective=ELBO(32),
        candidates={"first": [biased, DisARM()], "second": [biased]},
    )
    assert chosen == {"first": DisARM()}
    assert "biased: Halved(LeaveOneOut()) (z = " in chosen.reasons["first"]
    assert chosen.reasons["second"].startswith("left to 'auto'")
    assert "second  auto" in repr(chosen)


def test_refusals_leave_candidates_out():
    chosen = recommend(chain, chain_guide, num_draws=5, objective=ImportanceWeightedELBO(K=2))
    names = set(chosen.table.index.get_level_values("estimator"))
    assert "first: MeasureValued()" in names and "first: Enumerate()" not in names
    alone = recommend(
        chain, chain_guide, num_draws=5, candidates={"first": [Enumerate(), Pathwise()]}
    )
    assert alone.reasons["first"] == "Enumerate(): no noise, the only choice."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"candidates": {"third": [DisARM()]}},
            "site 'third' has candidates, but the guide draws no",
        ),
        ({"candidates": {"first": [Pathwise()]}}, "The last one: site 'first': Pathwise needs"),
        ({"candidates": {"first": []}}, "site 'first': the list of candidates is empty"),
        ({"objective": ForwardKL()}, "site 'first': no candidate serves it under ForwardKL"),
    ],
)
def test_bad_input_is_told_in_a_sentence(options, sentence):
    with pytest.raises(GuideError, match=sentence):
        recommend(chain, chain_guide, **options)


def test_estimators_are_written_short():
    assert in_short(ScoreFunction(MovingAverage(0.5))) == "ScoreFunction(MovingAverage(decay=0.5))"
    assert in_short(Pathwise(stick_the_landing=True)) == "Pathwise(stick_the_landing=True)"
    assert in_short(ScoreFunction()) == "ScoreFunction()"
