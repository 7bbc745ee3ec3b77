"""Positive latents (Gamma, Beta, Dirichlet), and products of their powers.

A value is written as c Π g^p, over independent latents g. What expected log-densities ask for are
E log v = log c + Σ p E log g, and E v, which is known where every power is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_vi.conjugacy.sums import compact, spread
from ppl_vi.conjugacy.values import MOVES, SPREADS, Law, Operation, Uncertain, holds, plain, rule

_ONE = 1e-3
"""How near to one the sum of probabilities must be."""


@dataclass(frozen=True)
class Power:
    """One latent in a product.

    Attributes:
        mean: E g, laid out as the product is.
        exponent: p.
    """

    mean: Tensor
    exponent: float


@dataclass(frozen=True)
class Positive(Law):
    """A product of powers of independent positive latents.

    Attributes:
        log: E log v.
        factor: c; None where E v is not known.
        powers: by latent.
        log_complement: E log(1 - v), where that is known.
    """

    log: Tensor
    factor: Tensor | None = None
    powers: Mapping[str, Power] | None = None
    log_complement: Tensor | None = None

    def mean(self) -> Tensor | None:
        """E v; None where the moments do not tell."""
        if self.factor is None or self.powers is None:
            return None
        total = self.factor
        for power in self.powers.values():
            if power.exponent != 1:
                return None
            total = total * power.mean
        return total

    def divided(self, sites: Sequence[str]) -> Tensor | None:
        """E v / Π g over the given latents; None where v is no multiple of their product."""
        rest = self
        for site in sites:
            power = (rest.powers or {}).get(site)
            if power is None or power.exponent != 1:
                return None
            others = {s: p for s, p in (rest.powers or {}).items() if s != site}
            rest = replace(rest, powers=others)
        return rest.mean()

    def compact(self, keep: int = 0) -> Positive:
        """The law with one entry along each dimension that it was expanded over, but the last ones."""
        return self._mapped(lambda tensor: compact(tensor, keep))

    def to_the(self, exponent: float) -> Positive:
        """The law of a power of the value."""
        powers = {
            site: replace(power, exponent=power.exponent * exponent)
            for site, power in (self.powers or {}).items()
        }
        factor = None if self.factor is None else self.factor**exponent
        return Positive(exponent * self.log, factor, powers)

    def times(self, other: Positive) -> Positive:
        """The law of the product with another value."""
        log = self.log + other.log
        if self.factor is None or other.factor is None:
            return Positive(log)
        powers = dict(self.powers or {})
        for site, power in (other.powers or {}).items():
            if site in powers and powers[site].mean is not power.mean:
                return Positive(log)  # perhaps of other entries of the site
            exponent = power.exponent + (powers[site].exponent if site in powers else 0.0)
            powers[site] = replace(power, exponent=exponent)
        powers = {site: power for site, power in powers.items() if power.exponent}
        return Positive(log, self.factor * other.factor, powers)

    def moved(self, function: Callable[[Tensor], Tensor]) -> Positive:
        """The law after an operation that moves entries about."""
        return self._mapped(lambda tensor: function(tensor.expand_as(self.log)))

    def spread(self, shape: torch.Size) -> Positive:
        """The law of the value expanded to a shape."""
        return self._mapped(lambda tensor: spread(tensor, shape))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Positive:
        """The law with a function applied to each of its tensors."""
        powers = self.powers and {
            site: replace(power, mean=function(power.mean)) for site, power in self.powers.items()
        }
        factor = None if self.factor is None else function(self.factor)
        complement = None if self.log_complement is None else function(self.log_complement)
        return Positive(function(self.log), factor, powers, complement)


@dataclass(frozen=True)
class Total(Law):
    """The sum of a value over its last dimension, by which probabilities are divided.

    Attributes:
        of: the law of the value.
    """

    of: Law


def certain_positive(value: Any) -> Positive | None:
    """The law of a value, where a plain tensor is itself; None where it has another one."""
    if isinstance(value, Uncertain):
        return value.law if isinstance(value.law, Positive) else None
    tensor = torch.as_tensor(value)
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    own = compact(tensor)  # entries that are expanded are equal
    return Positive(own.log(), own, {}, (-own).log1p()).spread(tensor.shape)


@rule(*MOVES)
def _moved(operation: Operation) -> Law | None:
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], Positive):
        return None
    return laws[0].moved(operation.on)


@rule(*SPREADS)
def _spread(operation: Operation) -> Law | None:
    laws = operation.laws
    if len(laws) != 1 or not isinstance(laws[0], Positive):
        return None
    return laws[0].spread(operation.shape)


@rule("mul", "rmul", "multiply")
def _product(operation: Operation) -> Law | None:
    one, other = (certain_positive(value) for value in operation.args[:2])
    return one.times(other) if one and other else None


@rule("div", "truediv", "true_divide", "divide", "rdiv", "rtruediv")
def _quotient(operation: Operation) -> Law | None:
    above, below = operation.args[:2]
    if operation.function.__name__.strip("_").startswith("r"):
        above, below = below, above
    if isinstance(below, Uncertain) and isinstance(below.law, Total):
        return below.law.of if isinstance(above, Uncertain) and below.law.of is above.law else None
    one, other = certain_positive(above), certain_positive(below)
    return one.times(other.to_the(-1.0)) if one and other else None


_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}


@rule("pow", *_POWERS)
def _power(operation: Operation) -> Law | None:
    name = operation.function.__name__.strip("_")
    exponent = _POWERS.get(name)
    if name == "pow" and isinstance(operation.args[1], (int, float)):
        exponent = float(operation.args[1])
    law = certain_positive(operation.args[0])
    return law.to_the(exponent) if law and exponent is not None else None


@rule("rsub", "sub")
def _complement(operation: Operation) -> Law | None:
    """One minus a Beta."""
    one, value = operation.args[:2]
    if operation.function.__name__.strip("_") == "rsub":
        one, value = value, one
    law = certain_positive(value)
    plain_one = not isinstance(one, Uncertain) and bool((torch.as_tensor(one) == 1).all())
    if not plain_one or law is None or law.log_complement is None:
        return None
    return Positive(law.log_complement, log_complement=law.log)


@rule("cumprod", "prod")
def _products(operation: Operation) -> Law | None:
    law = operation.laws[0]
    if not isinstance(law, Positive):
        return None
    sums = getattr(torch, {"cumprod": "cumsum", "prod": "sum"}[operation.function.__name__])
    return Positive(sums(law.log, *operation.args[1:], **operation.kwargs))


@rule("pad", "constant_pad_nd")
def _padded(operation: Operation) -> Law | None:
    law, (_, widths, *others) = operation.laws[0], operation.args
    mode, value = "constant", 0.0
    if not isinstance(law, Positive):
        return None
    if operation.function.__name__ == "pad":
        mode = others[0] if others else operation.kwargs.get("mode", "constant")
        value = others[1] if len(others) > 1 else operation.kwargs.get("value") or 0.0
    if mode != "constant":
        return None
    filler = torch.tensor(value).log().item()
    return Positive(torch.nn.functional.pad(law.log, widths, value=filler))


@rule("cat", "concat", "stack")
def _joined(operation: Operation) -> Law | None:
    laws = [certain_positive(value) for value in operation.args[0]]
    if any(law is None for law in laws):
        return None
    logs = [law.log for law in laws if law]
    return Positive(operation.function(logs, *operation.args[1:], **operation.kwargs))


@rule("sum")
def _total(operation: Operation) -> Law | None:
    """The sum of probabilities, which is one, and which distributions divide them by."""
    law = operation.laws[0]
    dim = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else None)
    if not isinstance(law, Positive) or dim not in (-1, (-1,), [-1]):
        return None
    total = plain(operation.args[0]).sum(-1)
    if not holds(lambda: (total - 1).abs() < _ONE):
        return None
    return Total(law)
