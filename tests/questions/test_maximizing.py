"""The mode of a fitted posterior, against exact ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_answers import LOCATION, Y, coin, fixed, logit_normal, posterior

from ppl_vi import ModelError


def test_a_mode_of_correlated_latents():
    mode = posterior().mode()
    torch.testing.assert_close(mode["slopes"], LOCATION[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(mode["last"], LOCATION[2], atol=1e-6, rtol=0)


def test_modes_at_and_beyond_an_edge():
    def positive(x):
        s = pyro.sample("s", dist.Exponential(5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(s, 1.0), obs=x)

    def guide(x):
        pyro.sample("s", dist.Exponential(5.0))

    assert fixed(positive, guide, -torch.ones(4)).mode()["s"] < 1e-5
    for tosses in (torch.ones(4), torch.zeros(4)):
        with pytest.raises(ModelError, match=r"no maximum was found: .* along site 'p'"):
            fixed(coin(0.5, 0.5), logit_normal, tosses).mode()

    def schools(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("groups", len(y)):
            level = pyro.sample("level", dist.Normal(mean, scale))
            pyro.sample("y", dist.Normal(level, 10.0), obs=10 * y)

    def apart(y):
        pyro.sample("mean", dist.Normal(0.0, 5.0))
        pyro.sample("scale", dist.LogNormal(1.0, 0.5))
        with pyro.plate("groups", len(y)):
            pyro.sample("level", dist.Normal(10 * y, 5.0))

    with pytest.raises(ModelError, match="no maximum was found"):
        fixed(schools, apart, Y).mode()
