"""Calibration flags what is shifted or of a wrong width, and passes what is exact.

An exact guide is flagged with a probability of 0.01 in each run: of the three here, 3 in 100 seeds.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import ModelError, calibrate, fit
from ppl_vi.diagnostics.uniformity import symmetry_p, uniformity_p
from ppl_vi.guides import EncoderGuide


def model(x):
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.5), obs=x)


def guide_of(shift=0.0, ratio=1.0, parameter=False):
    def guide(x):
        if parameter:
            pyro.param("unused", torch.tensor(0.0))
        precision = 1 / 4 + len(x) / 2.25
        center, sd = (1 / 4 + x.sum() / 2.25) / precision, precision**-0.5
        pyro.sample("mean", dist.Normal(center + shift * sd, ratio * sd))

    return guide


def checked(guide, seed=0, simulations=150, **options):
    return calibrate(
        model,
        guide,
        torch.zeros(10),
        simulations=simulations,
        num_draws=200,
        seed=seed,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_flags_shifts_and_widths_and_passes_the_exact(seed):
    assert checked(guide_of(), seed).passed
    shifted = checked(guide_of(shift=0.5), seed)
    assert not shifted.passed and "above the truth" in shifted.words
    narrow = checked(guide_of(ratio=0.5**0.5), seed)
    assert not narrow.passed and "too narrow" in narrow.words
    row = narrow.table.loc[("mean", "")]
    assert row["p_symmetry"] > 1e-4 and row["width"] == pytest.approx(2**0.5, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_more_seeds(seed):
    assert not checked(guide_of(shift=-0.5), seed, 300).passed
    wide = checked(guide_of(ratio=2**0.5), seed, 300)
    assert not wide.passed and "too wide" in wide.words
    assert (
        checked(guide_of(), seed, 300).table[["p_symmetry", "p_uniformity"]].min(axis=None) > 1e-4
    )


def test_levels_are_what_they_are_said_to_be():
    ranks = torch.rand(2_000, 100, dtype=torch.float64).numpy()
    for p in (symmetry_p, uniformity_p):
        share = sum(p(row) < 0.05 for row in ranks) / len(ranks)
        assert share == pytest.approx(0.05, abs=4.5 * (0.05 * 0.95 / len(ranks)) ** 0.5)


def test_guides_with_parameters_are_fitted():
    still = {"steps": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    found = checked(guide_of(parameter=True), simulations=20, **still)
    assert found.ranks["mean"].shape == (20,) and found.failed == 0
    assert "mean" in str(found) and found.plot().axes


@pytest.mark.slow
def test_vectors_plates_and_sites_that_are_no_argument():
    def several(x, y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.Gamma(3.0, 3.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            level = pyro.sample("level", dist.Normal(0.0, 0.1))
            pyro.sample("y", dist.Normal(level + x @ weights, scale * noise), obs=y.exp())

    x, y = torch.randn(3, 2), torch.randn(3)
    quick = {"simulations": 20, "seed": 0, "progress": False, "steps": 5, "compile": False}
    found = calibrate(several, "normal", (x, y), **quick)
    assert {n: tuple(r.shape) for n, r in found.ranks.items()} == {
        "weights": (20, 2),
        "noise": (20,),
        "level": (20, 3),
    }
    assert len(found.table) == 6 and found.table.index[0] == ("weights", "0")
    with pytest.raises(
        ModelError, match="site 'y': what it observes is none of the model's arguments"
    ):
        calibrate(several, lambda x, y: None, (x, y), **quick)


@pytest.mark.slow
def test_networks_are_left_as_they_were():
    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Network(torch.nn.Linear):
        def forward(self, x):
            loc, scale = super().forward(x[:, None]).unbind(-1)
            return loc, scale.exp()

    network = Network(1, 2)
    before = [p.detach().clone() for p in network.parameters()]
    quick = {"simulations": 20, "seed": 0, "progress": False, "steps": 3, "compile": False}
    found = calibrate(local, EncoderGuide(network), torch.zeros(6), batch_size=3, **quick)
    assert found.ranks["z"].shape == (20, 6)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_what_cannot_be_simulated_is_refused():
    def with_factor(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("bonus", -(mean**2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ModelError, match=r"'bonus' is a pyro\.factor"):
        calibrate(with_factor, "normal", torch.zeros(3), progress=False)
    with pytest.raises(ModelError, match="observes nothing"):
        calibrate(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), "normal", progress=False)
    with pytest.raises(ValueError, match="simulations must be 20 or more, not 5"):
        checked(guide_of(), simulations=5)


@pytest.mark.slow
def test_a_fit_calibrates_its_own_family():
    result = fit(model, "normal", torch.zeros(10), steps=5, compile=False, seed=0, progress=False)
    report = result.diagnose(1_000, simulations=20, fit_options={"compile": False}, progress=False)
    assert report.calibration.ranks["mean"].shape == (20,) and "calibration:" in str(report)
