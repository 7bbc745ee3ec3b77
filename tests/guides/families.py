"""The guides of our own that the contract is tested on, and the programs that it is tested with."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch

from ppl_vi.guides import (
    DeltaGuide,
    FlowGuide,
    LaplaceGuide,
    LowRankGuide,
    MixtureGuide,
    MultivariateNormalGuide,
    NormalGuide,
    StructuredGuide,
)

X = torch.cat([torch.linspace(-2.5, -1.5, 6), torch.linspace(1.5, 2.5, 5)])


class Family(NamedTuple):
    """A guide under the contract.

    Attributes:
        kind: the class.
        name: that ``fit`` knows it by.
        point: whether it draws one point, which has no density.
        pathwise: whether gradients of draws go along their paths, so that differences tell them.
        rows: whether it takes latents in the plates of minibatches.
        settings: smaller than the defaults, for time.
    """

    kind: type
    name: str
    point: bool = False
    pathwise: bool = True
    rows: bool = True
    settings: Mapping[str, Any] = MappingProxyType({})

    def make(self, model):
        """The guide of a model."""
        return self.kind(model, **self.settings)


SMALL_FLOW = {"num_transforms": 2, "num_bins": 4, "hidden": (16,), "num_components": 2}
FAMILIES = {
    "NormalGuide": Family(NormalGuide, "normal"),
    "MultivariateNormalGuide": Family(MultivariateNormalGuide, "multivariate_normal"),
    "LowRankGuide": Family(LowRankGuide, "lowrank"),
    "MixtureGuide": Family(MixtureGuide, "mixture", pathwise=False, settings={"num_components": 3}),
    "FlowGuide": Family(FlowGuide, "flow", settings=SMALL_FLOW),
    "StructuredGuide": Family(StructuredGuide, "structured"),
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
