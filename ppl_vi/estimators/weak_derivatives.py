"""Weak derivatives: dq/dλ as a weighted difference of distributions, by family and parameter.

For a parameter λ of q, dq/dλ = c (q⁺ - q⁻), so that d/dλ E_q[f(z)] = c (E_{q⁺}[f] - E_{q⁻}[f]). Each
decomposition below says which alternatives to a draw are needed and how each of them counts; the
draw itself is the alternative against which all are counted, so that a part of the difference that
equals q needs no alternative of its own. Alternatives share random numbers where they can.

Source: Mohamed et al. (2020), section 6; Heidergott, Vázquez-Abad and Volk-Makarewicz (2008) for the
Normal's pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
"""A family's parameters by name, each in the shape of the draw (logits with one more dimension)."""


@dataclass(frozen=True)
class Decomposition:
    """How E_q[f] changes with one parameter.

    Attributes:
        parameter: its name.
        sample: alternatives to a draw, from the parameters and the draw.
        weights: how each alternative counts, from the parameters and the alternatives.
        alternatives: how many there are.
        category: of a parameter with one entry per category, the one that changes.
    """

    parameter: str
    sample: Callable[[Parameters, Tensor], tuple[Tensor, ...]]
    weights: Callable[[Parameters, tuple[Tensor, ...]], tuple[Tensor, ...]]
    alternatives: int = 1
    category: int | None = None

    def of(self, given: Parameters) -> Tensor:
        """The parameter that changes, in the shape of the draw."""
        whole = given[self.parameter]
        return whole if self.category is None else whole[..., self.category]


def _around_location(given: Parameters, draw: Tensor) -> tuple[Tensor, ...]:
    distance = given["scale"] * (2 * torch.empty_like(draw).exponential_()).sqrt()
    return given["loc"] + distance, given["loc"] - distance


def _location_weights(given: Parameters, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = 1 / (given["scale"] * math.sqrt(2 * math.pi))
    return weight, -weight


def _around_scale(given: Parameters, draw: Tensor) -> tuple[Tensor, ...]:
    """A double-sided Maxwell draw and, a uniform part of it, a Normal one."""
    maxwell = torch.randn(3, *draw.shape, dtype=draw.dtype, device=draw.device).norm(dim=0)
    far = given["scale"] * torch.where(torch.rand_like(draw) < 0.5, maxwell, -maxwell)
    return given["loc"] + far, given["loc"] + far * torch.rand_like(draw)


def _scale_weights(given: Parameters, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return 1 / given["scale"], -1 / given["scale"]


def _one_and_zero(given: Parameters, draw: Tensor) -> tuple[Tensor, ...]:
    return torch.ones_like(draw), torch.zeros_like(draw)


def _plus_and_minus_one(given: Parameters, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.ones_like(given["probs"]), -torch.ones_like(given["probs"])


def _one_more(given: Parameters, draw: Tensor) -> tuple[Tensor, ...]:
    return (draw + 1,)


def _plus_one(given: Parameters, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.ones_like(given["rate"]),)


def _one_exponential_more(given: Parameters, draw: Tensor) -> tuple[Tensor, ...]:
    """Gamma(a + 1) from Gamma(a); an Exponential is the Gamma with a = 1."""
    return (draw + torch.empty_like(draw).exponential_() / given["rate"],)


def _rate_weights(given: Parameters, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (-given.get("concentration", torch.ones_like(given["rate"])) / given["rate"],)


@torch.library.custom_op("ppl_vi::gamma_quantile", mutates_args=())
def _gamma_quantile(concentration: Tensor, quantile: Tensor) -> Tensor:
    """The inverse of the incomplete gamma function, which torch lacks; an operation in graphs too."""
    from scipy.special import gammaincinv  # heavy, and not every fit needs it

    with torch._C.DisableTorchFunction():
        return torch.as_tensor(gammaincinv(concentration.cpu().numpy(), quantile.cpu().numpy()))


@_gamma_quantile.register_fake
def _(concentration: Tensor, quantile: Tensor) -> Tensor:
    return torch.empty_like(quantile, device="cpu")


def _beside_typical_value(given: Parameters, draw: Tensor) -> tuple[Tensor, ...]:
    """A Gamma draw above exp(E[log z]) and one below, where dq/da = q (log z - E[log z]) is 0."""
    concentration = given["concentration"].double()
    below = torch.special.gammainc(concentration, torch.digamma(concentration).exp())
    u = torch.rand_like(below)
    quantiles = below + (1 - below) * u, below * u
    values = (_gamma_quantile(concentration, quantile) for quantile in quantiles)
    tiny = torch.finfo(draw.dtype).tiny  # as torch's own draws are
    return tuple((v.to(draw) / given["rate"]).clamp(min=tiny) for v in values)


def _concentration_weights(given: Parameters, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    concentration, rate = given["concentration"], given["rate"]
    typical = torch.digamma(concentration)
    below = torch.special.gammainc(concentration, typical.exp())
    above_value, below_value = values
    return (
        (1 - below) * ((rate * above_value).log() - typical),
        below * ((rate * below_value).log() - typical),
    )


def category(number: int) -> Decomposition:
    """How E_q[f] changes with one logit of a Categorical: dq/dα = q(k) (δ_k - q)."""
    return Decomposition(
        "logits",
        lambda given, draw: (torch.full_like(draw, number),),
        lambda given, values: (given["logits"].softmax(-1)[..., number],),
        category=number,
    )


_RATE = Decomposition("rate", _one_exponential_more, _rate_weights)

DECOMPOSITIONS: Mapping[str, tuple[Decomposition, ...]] = {
    "Normal": (
        Decomposition("loc", _around_location, _location_weights, 2),
        Decomposition("scale", _around_scale, _scale_weights, 2),
    ),
    "Bernoulli": (Decomposition("probs", _one_and_zero, _plus_and_minus_one, 2),),
    "Poisson": (Decomposition("rate", _one_more, _plus_one),),
    "Exponential": (_RATE,),
    "Gamma": (
        Decomposition("concentration", _beside_typical_value, _concentration_weights, 2),
        _RATE,
    ),
}
"""By the name of the distribution; those of a Categorical are made by ``category``."""
