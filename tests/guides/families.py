"""The guides of our own that the contract is tested on, and the programs that it is tested with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch

from ppl_vi.guides import (
    AuxiliaryGuide,
    DeltaGuide,
    FlowGuide,
    LaplaceGuide,
    LowRankGuide,
    MixtureGuide,
    MultivariateNormalGuide,
    NormalGuide,
)

X = torch.cat([torch.linspace(-2.5, -1.5, 6), torch.linspace(1.5, 2.5, 5)])


class Family(NamedTuple):
    """A guide under the contract.

    Attributes:
        make: the guide of a model; a class, unless it takes options.
        name: that ``fit`` knows it by.
        point: whether it draws one point, which has no density.
        pathwise: whether gradients of draws go along their paths, so that differences tell them.
        rows: whether it takes latents in the plates of minibatches.
    """

    make: Callable[..., Any]
    name: str
    point: bool = False
    pathwise: bool = True
    rows: bool = True


FAMILIES = {
    "NormalGuide": Family(NormalGuide, "normal"),
    "MultivariateNormalGuide": Family(MultivariateNormalGuide, "multivariate_normal"),
    "LowRankGuide": Family(LowRankGuide, "lowrank"),
    "MixtureGuide": Family(MixtureGuide, "mixture", pathwise=False),
    "FlowGuide": Family(FlowGuide, "flow"),
    "AuxiliaryGuide": Family(AuxiliaryGuide, "auxiliary"),
    "DeltaGuide": Family(DeltaGuide, "delta", point=True),
    "LaplaceGuide": Family(LaplaceGuide, "laplace", point=True, rows=False),
}


def constrained(x):
    """One latent of each kind of support, in no plate, one and two, and an empty one."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    width = pyro.sample("width", dist.Gamma(2.0, 2.0))
    fraction = pyro.sample("fraction", dist.Beta(2.0, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 2, dim=-2):
        level = pyro.sample("level", dist.Uniform(-4.0, 4.0))
        with pyro.plate("columns", 3, dim=-1):
            effect = pyro.sample("effect", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("nothing", dist.Normal(torch.zeros(0), 1.0).to_event(1))
    total = fraction + weights[..., 0] + effect.sum((-1, -2, -3)) / 6
    center = mean + total + (level.mean((-1, -2)) if level.dim() > 1 else level)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(center.unsqueeze(-1), width.unsqueeze(-1) + 0.1), obs=x)


SHAPES = {
    "mean": (),
    "width": (),
    "fraction": (),
    "weights": (3,),
    "level": (2,),
    "effect": (2, 3, 2),
    "nothing": (0,),
}


def rows_model(x):
    """A latent for each row, and one for all."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 11, subsample_size=len(x)):
        own = pyro.sample("own", dist.Normal(mean, 2.0))
        pyro.sample("x", dist.Normal(own, 0.5), obs=x)
