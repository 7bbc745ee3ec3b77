"""A normalizing flow over all latents together, made of zuko's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vi.counts import check_count
from ppl_vi.guides.mixture import MixtureGuide
from ppl_vi.guides.networks import WeightedTransform, flat_weights
from ppl_vi.registry import autoguide_builder, register_guide
from ppl_vi.starts import GuideStart

Kind = Literal["spline", "affine"]

_TRANSFORMS, _BINS, _HIDDEN = 3, 8, (32, 32)
_COMPONENTS, _SEARCHES = 8, 12
_START = 0.01
_UNIT = 0.1
"""Of weights: a step that suits a location is ten times too large for a network of splines."""


class FlowGuide(MixtureGuide):
    """A normalizing flow over all latents in unconstrained space.

    e = f_T ∘ ... ∘ f_1(ε),  ε ~ Σ_k w_k Normal(loc_k, L_k L_k^T),  u = location + factor e

    Each f is masked autoregressive: number i moves monotonically, as numbers before it say through a
    small network, by an affine map (``"affine"``) or by a rational-quadratic spline and an affine map
    (``"spline"``); the order turns around from one f to the next. A draw and its density take one
    pass; the density at another point takes D passes for each f.

    f is continuous and one-to-one, so that a flow of one Gaussian leaves bridges of mass between modes
    that lie apart, or misses some of them. So ε is a mixture, which starts at the modes that were
    found, with f near the identity, and is trained too. The sum over components is taken as in
    ``MixtureGuide``.

    Args:
        model: a Pyro model.
        kind: of each f.
        num_transforms: T.
        num_bins: of each spline.
        hidden: sizes of the network's hidden layers.
        num_components: of ε; 1 is a flow of one Gaussian.
        num_searches: from how many places modes are searched for.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.

    Raises:
        ImportError: zuko is not installed.
        ValueError: a number is not a positive integer, or the kind another word.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> from ppl_vi.guides import FlowGuide
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x**2, 0.3))
        >>> guide = FlowGuide(model, num_transforms=2, num_searches=1)
        >>> result = fit(model, guide, steps=20, progress=False)
        >>> result.sample(3)["y"].shape
        torch.Size([3])

    Source: Kingma et al. (2016), for the direction; Papamakarios, Pavlakou and Murray (2017), also for
    the mixture; Durkan et al. (2019), for splines; Rozet et al., zuko.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        kind: Kind = "spline",
        num_transforms: int = _TRANSFORMS,
        num_bins: int = _BINS,
        hidden: tuple[int, ...] = _HIDDEN,
        num_components: int = _COMPONENTS,
        num_searches: int = _SEARCHES,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_count("num_transforms", num_transforms)
        check_count("num_bins", num_bins)
        if kind not in ("spline", "affine"):
            raise ValueError(f"kind must be 'spline' or 'affine', not {kind!r}.")
        _need_zuko()
        super().__init__(
            model,
            num_components=num_components,
            num_searches=num_searches,
            create_plates=create_plates,
        )
        self.kind, self.num_transforms, self.num_bins = kind, num_transforms, num_bins
        self.hidden = tuple(hidden)

    def _set_up(self, dim: int, start: GuideStart) -> None:
        super()._set_up(dim, start)
        layers = [self._layer(dim, turned=bool(t % 2)) for t in range(self.num_transforms)]
        stack = _Stack(layers).to(self.location)
        self._stack = (stack,)  # in a tuple: its own parameters are not those of the guide
        self.weights = nn.Parameter(flat_weights(stack) / _UNIT)

    def _layer(self, dim: int, turned: bool) -> nn.Module:
        """One f, near the identity."""
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform

        affine, spline = [(), ()], [(self.num_bins,), (self.num_bins,), (self.num_bins - 1,)]
        shapes = affine if self.kind == "affine" else [*spline, *affine]
        order = torch.arange(dim)
        layer: Any = MaskedAutoregressiveTransform(
            dim,
            order=order.flip(0) if turned else order,
            univariate=_univariate,
            shapes=shapes,
            hidden_features=self.hidden,
            activation=nn.Tanh,
        )
        with torch.no_grad():
            last = layer.hyper[-1].parameters() if dim > 1 else layer.parameters()
            for weight in last:
                weight.mul_(_START)
        made: nn.Module = layer
        return made

    def _flow(self) -> WeightedTransform:
        return WeightedTransform(self._stack[0], _UNIT * self.weights)

    def distribution(self) -> TorchDistribution:
        """The image of the mixture."""
        return dist.TransformedDistribution(self._mixture(), [self._flow()])

    def _draw_vector(self) -> Tensor:
        base, flow = super()._draw_vector(), self._flow()
        e: Tensor = flow(base)
        log_volume = flow.log_abs_det_jacobian(base, e)
        return self._auxiliary("of_flow", dist.Delta(e, -log_volume, event_dim=1))


class _Stack(nn.Module):
    """All f in a row."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """``[..., D]``: the image, or the one whose image it is; and ``[...]``: log |df / dx|."""
        total = torch.zeros_like(x[..., 0])
        for layer in reversed(self.layers) if inverse else self.layers:
            transform = layer()
            if inverse:
                x = transform.inv(x)
                total = total + transform.call_and_ladj(x)[1]
            else:
                x, log_volume = transform.call_and_ladj(x)
                total = total + log_volume
        return x, total


def _univariate(*parameters: Tensor) -> Any:
    """An affine map, with a spline before it where there are parameters for one."""
    from zuko.transforms import (
        ComposedTransform,
        MonotonicAffineTransform,
        MonotonicRQSTransform,
    )

    affine = MonotonicAffineTransform(*parameters[-2:])
    if len(parameters) == 2:
        return affine
    return ComposedTransform(MonotonicRQSTransform(*parameters[:-2]), affine)


def _need_zuko() -> None:
    try:
        import zuko as zuko
    except ImportError as error:
        raise ImportError(
            "FlowGuide needs the package zuko, which is not installed. Install it with "
            "pip install zuko, or use the guide 'mixture'."
        ) from error


register_guide("flow", autoguide_builder(FlowGuide))
