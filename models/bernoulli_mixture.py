"""The Beta-Bernoulli mixture."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vi.clusters import find_clusters
from ppl_vi.models.checks import check_shape, count, positive

_EDGE = 0.05
"""How near to 0 and 1 probabilities start."""


class BernoulliMixture:
    """A mixture of K products of Bernoullis, a Pyro model ``model(data)``.

    pi ~ Dirichlet(concentration),  p_kd ~ Beta(1, 1),
    z_i ~ Categorical(pi),  x_id ~ Bernoulli(p_{z_i d})

    Sites: ``pi`` [K], ``p`` [K, D], ``z`` [N], ``x`` [N, D]. Leave ``z`` out of a guide, and it is
    summed out. It is the model of latent classes.

    Args:
        num_components: K.
        concentration: of the Dirichlet prior, for each component; 1 / K by default, which empties
            components that the data do not need.

    Data are ``[N, D]`` floating-point, of zeros and ones.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape, or fewer distinct rows than components.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import BernoulliMixture
        >>> data = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).repeat(50, 1)
        >>> result = fit(BernoulliMixture(2), "cavi", data, seed=0, progress=False)
        >>> result.guide.factors()["p"].mean.round()
        tensor([[0., 0., 1.],
                [1., 1., 0.]])

    Source: Bishop (2006), section 9.3.3.
    """

    def __init__(self, num_components: int, *, concentration: float | None = None) -> None:
        self.num_components = count("num_components", num_components)
        given = 1 / num_components if concentration is None else concentration
        self.concentration = positive("concentration", given)

    def __call__(self, data: Tensor) -> Tensor:
        """The joint density of the latents and the data; returns the data's site."""
        check_shape("BernoulliMixture: data", data, "[N, D]")
        one = data.new_ones(data.shape[1])
        weights = data.new_full((self.num_components,), self.concentration)
        pi = pyro.sample("pi", dist.Dirichlet(weights))
        with pyro.plate("component", self.num_components):
            p = pyro.sample("p", dist.Beta(one, one).to_event(1))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(pi))
            x: Tensor = pyro.sample("x", dist.Bernoulli(p[z]).to_event(1), obs=data)
        return x

    def initial_values(self, data: Tensor) -> dict[str, Tensor]:
        """Starting values by site: clusters by k-means++.

        Args:
            data: ``[N, D]``.

        Raises:
            DataError: there are fewer distinct rows than components.
        """
        check_shape("BernoulliMixture: data", data, "[N, D]")
        clusters = find_clusters(data, self.num_components)
        return {"pi": clusters.shares, "p": clusters.means.clamp(_EDGE, 1 - _EDGE)}
