"""A Normal for each number given those before it, whose place and width bend with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn import AutoRegressiveNN
from pyro.nn.module import PyroParam
from torch import Tensor, nn

from ppl_vi.guides.joint import JointGuide, SampledNormal
from ppl_vi.guides.networks import WeightedTransform, flat_weights
from ppl_vi.registry import autoguide_builder, register_guide
from ppl_vi.starts import GuideStart

_HIDDEN = (32, 32)
_START = 0.01
_WIDEST = 5.0
"""Of log widths, softly: a network that is asked far out must not overflow."""


class StructuredGuide(JointGuide):
    """An autoregressive Normal: each number's, given those before it.

    x ~ Normal(loc, L L^T),  e_i = m_i(x_<i) + s_i(x_<i) x_i,  u = location + factor e

    with one masked network for all m and s. Since x_<i is known from e_<i, each e_i given those before
    it is a Normal, of any bend and any change of width: a banana, a funnel, the latents of groups given
    their mean and spread. The order is the model's, causes first. It starts as the full Gaussian that
    was found, which it contains. A draw and its density take one pass, the density at another point D.
    It needs no further package; of modes that lie apart it keeps to one, for which see
    ``MixtureGuide`` and ``FlowGuide``.

    Args:
        model: a Pyro model.
        hidden: sizes of the network's hidden layers, widened to D where that is more.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x**2, 0.3))
        >>> result = fit(model, "structured", steps=1_000, seed=0, progress=False)
        >>> bool(abs(result.elbo) < 0.1)  # log p is 0: nothing was observed
        True

    Source: Germain et al. (2015), for the masked network; Kingma et al. (2016), for the direction;
    Hoffman and Blei (2015), Structured stochastic variational inference.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        hidden: tuple[int, ...] = _HIDDEN,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        self.hidden = tuple(hidden)

    def _set_up(self, dim: int, start: GuideStart) -> None:
        one = torch.ones_like(self.location)
        self.loc = nn.Parameter(torch.zeros_like(one))
        self.scale = PyroParam(one, constraints.softplus_positive)
        self.scale_tril = PyroParam(torch.diag(one), constraints.unit_lower_cholesky)
        if dim > 1:
            bend = _Bend(dim, self.hidden).to(self.location)
            self._bend = (bend,)  # in a tuple: its own weights are not those of the guide
            self.weights = nn.Parameter(flat_weights(bend))

    def _base(self) -> TorchDistribution:
        return SampledNormal(self.loc, scale_tril=self.scale.unsqueeze(-1) * self.scale_tril)

    def _map(self) -> WeightedTransform | None:
        """From x to e; None of one number, which has none before it."""
        return WeightedTransform(self._bend[0], self.weights) if len(self.location) > 1 else None

    def distribution(self) -> TorchDistribution:
        """The image of the Normal."""
        base, bent = self._base(), self._map()
        return base if bent is None else dist.TransformedDistribution(base, [bent])

    def _draw_vector(self) -> Tensor:
        x, bent = self._auxiliary("latent", self._base()), self._map()
        if bent is None:
            return x
        e: Tensor = bent(x)
        log_volume = bent.log_abs_det_jacobian(x, e)
        return self._auxiliary("of_structure", dist.Delta(e, -log_volume, event_dim=1))


class _Bend(nn.Module):
    """Each number moved and stretched as those before it say; at first hardly."""

    def __init__(self, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [max(size, dim) for size in hidden]
        order = torch.arange(dim)
        # Straight far out, unlike tanh: the full Gaussian that the start is whitened by may be narrow.
        self.network = AutoRegressiveNN(dim, sizes, permutation=order, nonlinearity=nn.SiLU())
        with torch.no_grad():
            for weight in self.network.layers[-1].parameters():
                weight.mul_(_START)

    def _parameters_at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.network(x)
        return shift, log_scale / (1 + log_scale.abs() / _WIDEST)

    def forward(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """``[..., D]``: the image, or the one whose image it is; and ``[...]``: log |de / dx|."""
        if inverse:
            e, x = x, torch.zeros_like(x)
            for _ in range(e.shape[-1]):  # each pass gets one more number right
                shift, log_scale = self._parameters_at(x)
                x = (e - shift) * (-log_scale).exp()
            return x, self._parameters_at(x)[1].sum(-1)
        shift, log_scale = self._parameters_at(x)
        return shift + log_scale.exp() * x, log_scale.sum(-1)


register_guide("structured", autoguide_builder(StructuredGuide))
