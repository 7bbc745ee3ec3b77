"""Models, data and guides whose posteriors are known, and how close an answer must be."""

import pyro
import pyro.distributions as dist
import torch

from ppl_vi import fit


def still(parameters):
    """An optimizer that moves nothing: the guide stays as it is written."""
    return torch.optim.SGD(parameters, lr=0.0)


def fixed(model, guide, data, **options):
    def with_parameter(*args):
        pyro.param("unused", torch.tensor(0.0))
        guide(*args)

    return fit(
        model, with_parameter, data, optimizer=still, steps=1, progress=False, seed=0, **options
    )


def close(estimate, exact, error=None):
    error = estimate.standard_error if error is None else error
    return abs(float(estimate) - float(exact)) <= 4.5 * error + 1e-8


def normal(mean, covariance, x):
    return dist.MultivariateNormal(mean, covariance).log_prob(x).item()


# One mean with a Normal prior: N(0.5, 4), data N(mean, 2.25).

X = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0], dtype=torch.float64)
NEW = torch.tensor([1.0, -2.0], dtype=torch.float64)
PRECISION = 1 / 4 + len(X) / 2.25
MEAN = (0.5 / 4 + X.sum().item() / 2.25) / PRECISION


def one_mean(x):
    mean = pyro.sample("mean", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.5), obs=x)


def at(location, scale):
    return lambda x: pyro.sample("mean", dist.Normal(torch.tensor(location), torch.tensor(scale)))


# Factor analysis with its exact posterior for each row: all latents are of rows.

LOADINGS = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.7, 0.7]], dtype=torch.float64)
ROWS = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def factors(x):
    noise = pyro.param("noise", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADINGS.mT, noise).to_event(1), obs=x)


def exact_encoder(x, widen=1.0):
    covariance = torch.linalg.inv(torch.eye(2) + LOADINGS.mT @ LOADINGS / 0.25)
    with pyro.plate("data", len(x)):
        loc = x @ LOADINGS @ covariance / 0.25
        pyro.sample("z", dist.MultivariateNormal(loc, widen * covariance))


# A hierarchy: a shared mean and a level for each group.

Y = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0, 3.0], dtype=torch.float64)


def hierarchy(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(level, 0.5), obs=y)


# Correlated latents of a linear Gaussian model, the guide being its exact posterior.

DESIGN = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
DESIGN[:, 1] += DESIGN[:, 0]
TARGET = DESIGN @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64) + 0.3
COVARIANCE = torch.linalg.inv(DESIGN.mT @ DESIGN + torch.eye(3) / 4)
LOCATION = COVARIANCE @ DESIGN.mT @ TARGET


def regression(x, y):
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    last = pyro.sample("last", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        center = slopes @ x[:, :2].mT + last[..., None] * x[:, 2]
        pyro.sample("y", dist.Normal(center, 1.0), obs=y)


def jointly(x, y):
    joint = dist.MultivariateNormal(LOCATION, COVARIANCE)
    u = pyro.sample("u", joint, infer={"is_auxiliary": True})
    pyro.sample("slopes", dist.Delta(u[..., :2], event_dim=1))
    pyro.sample("last", dist.Delta(u[..., 2]))


def posterior(model=regression, guide=jointly):
    return fixed(model, guide, (DESIGN, TARGET))


# Beta-Bernoulli: other coordinates than the guide's.

TOSSES = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)


def coin(a, b):
    def model(x):
        p = pyro.sample("p", dist.Beta(a, b))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    return model


def logit_normal(x):
    u = pyro.sample("u", dist.Normal(0.3, 0.8), infer={"is_auxiliary": True})
    p = u.sigmoid()
    pyro.sample("p", dist.Delta(p, -(p * (1 - p)).log()))
