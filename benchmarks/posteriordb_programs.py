"""The eight posteriors of posteriordb as Pyro programs, with the quantities that have a reference.

Each entry maps the data of the JSON file to the arguments of a Pyro model. A program's sites, in the
order of Stan's parameters, are compared with the reference by name: ``beta[2]`` is ``beta[..., 1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


class Posterior(NamedTuple):
    """A model and how its arguments are read from the data of a file.

    Attributes:
        model: the Pyro program.
        arguments: from the data to the model's arguments.
        regression: whether it is a linear regression, which a Gaussian in unconstrained space fits.
    """

    model: Callable[..., None]
    arguments: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    regression: bool = False


def tensor(values: Any) -> Tensor:
    """In torch's default dtype."""
    return torch.as_tensor(values, dtype=torch.get_default_dtype())


def flat(size: int) -> Any:
    """A flat prior over so many real numbers."""
    return dist.ImproperUniform(constraints.real, (), (size,))


def flat_positive() -> Any:
    """A flat prior over the positive numbers."""
    return dist.ImproperUniform(constraints.positive, (), ())


def regression(predictors: Tensor, y: Tensor) -> None:
    """A linear regression with flat priors."""
    beta = pyro.sample("beta", flat(predictors.shape[1]))
    sigma = pyro.sample("sigma", flat_positive())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((predictors @ beta.unsqueeze(-1)).squeeze(-1), sigma), obs=y)


def kidscore(predictors: Tensor, y: Tensor) -> None:
    """A linear regression with flat coefficients and a half-Cauchy noise."""
    beta = pyro.sample("beta", flat(predictors.shape[1]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((predictors @ beta.unsqueeze(-1)).squeeze(-1), sigma), obs=y)


def kilpisjarvi(x: Tensor, y: Tensor, priors: Mapping[str, float]) -> None:
    """A straight line whose intercept is far from the data."""
    alpha = pyro.sample("alpha", dist.Normal(priors["pmualpha"], priors["psalpha"]))
    beta = pyro.sample("beta", dist.Normal(priors["pmubeta"], priors["psbeta"]))
    sigma = pyro.sample("sigma", flat_positive())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def autoregression(lagged: Tensor, y: Tensor) -> None:
    """AR(K)."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([lagged.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(y)):
        mean = alpha + (lagged @ beta.unsqueeze(-1)).squeeze(-1)
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, not centered."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        offset = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * offset)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gaussian_process(x: Tensor, y: Tensor) -> None:
    """A Gaussian process with a squared-exponential kernel."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))[..., None, None]
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))[..., None, None]
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))[..., None, None]
    kernel = alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))
    covariance = kernel + sigma * torch.eye(len(x))
    zero = torch.zeros(len(x))
    pyro.sample("y", dist.MultivariateNormal(zero, covariance_matrix=covariance), obs=y)


def mixture(y: Tensor) -> None:
    """Two components, whose means are ordered; labels are summed out by hand."""
    prior = dist.Normal(0.0, 2.0).expand([2]).to_event(1)
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.factor("mu_prior", prior.log_prob(mu))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = torch.stack([theta, 1 - theta], -1)
    with pyro.plate("data", len(y)):
        components = dist.Normal(mu.unsqueeze(-2), sigma.unsqueeze(-2))
        pyro.sample(
            "y", dist.MixtureSameFamily(dist.Categorical(weights.unsqueeze(-2)), components), obs=y
        )


def _earnings(data: Mapping[str, Any]) -> tuple[Any, ...]:
    height, male = tensor(data["height"]), tensor(data["male"])
    predictors = torch.stack([torch.ones_like(height), height, male, height * male], -1)
    return predictors, tensor(data["earn"]).log()


def _mesquite(data: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    logs = [tensor(data[name]).log() for name in names]
    group = tensor(data["group"])
    return torch.stack([torch.ones_like(group), *logs, group], -1), tensor(data["weight"]).log()


def _kidiq(data: Mapping[str, Any]) -> tuple[Any, ...]:
    school, iq = tensor(data["mom_hs"]), tensor(data["mom_iq"])
    predictors = torch.stack([torch.ones_like(iq), school, iq, school * iq], -1)
    return predictors, tensor(data["kid_score"])


def _lagged(data: Mapping[str, Any]) -> tuple[Any, ...]:
    y, order = tensor(data["y"]), data["K"]
    lagged = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return lagged, y[order:]


def _kilpisjarvi(data: Mapping[str, Any]) -> tuple[Any, ...]:
    priors = {name: float(data[name]) for name in ("pmualpha", "psalpha", "pmubeta", "psbeta")}
    return tensor(data["x"]), tensor(data["y"]), priors


POSTERIORS = {
    "arK-arK": Posterior(autoregression, _lagged, regression=True),
    "earnings-logearn_interaction": Posterior(regression, _earnings, regression=True),
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools, lambda data: (tensor(data["y"]), tensor(data["sigma"]))
    ),
    "gp_pois_regr-gp_regr": Posterior(
        gaussian_process, lambda data: (tensor(data["x"]), tensor(data["y"]))
    ),
    "kidiq-kidscore_interaction": Posterior(kidscore, _kidiq, regression=True),
    "kilpisjarvi_mod-kilpisjarvi": Posterior(kilpisjarvi, _kilpisjarvi, regression=True),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(mixture, lambda data: (tensor(data["y"]),)),
    "mesquite-logmesquite": Posterior(regression, _mesquite, regression=True),
}
"""By the name of the file."""
