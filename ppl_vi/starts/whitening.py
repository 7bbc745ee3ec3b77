"""Coordinates in which a posterior is near the standard Normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Whitening:
    """u = location + factor e, with e near Normal(0, I) under the posterior.

    u are the unconstrained values of the sites, flattened and laid end to end.

    Attributes:
        sizes: how many numbers of u each site has, by site, in their order; D in all.
        location: ``[D]``.
        factor: ``[D, D]``, lower triangular with a positive diagonal, or the ``[D]`` diagonal of one.

    Example:
        >>> import torch
        >>> factor = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
        >>> whitening = Whitening({"a": 1, "b": 1}, torch.tensor([5.0, 6.0]), factor)
        >>> whitening.of(("b",)).factor.square().round()
        tensor([[13.]])
        >>> whitening.widths() ** -2  # the diagonal of the inverse covariance
        tensor([1.4444, 0.1111])
    """

    sizes: Mapping[str, int]
    location: Tensor
    factor: Tensor

    def of(self, names: tuple[str, ...]) -> Whitening:
        """The marginal whitening of some of the sites, in that order."""
        if names == tuple(self.sizes):
            return self
        places = torch.cat([self._places(name) for name in names]).to(self.location.device)
        sizes = {name: self.sizes[name] for name in names}
        factor = self.factor[places]
        if factor.dim() == 2:
            # The covariance of rows of a factor; a QR decomposition squares no condition number.
            upper = torch.linalg.qr(factor.mT, mode="r").R
            factor = upper.mT * upper.diagonal().sign()
        return Whitening(sizes, self.location[places], factor)

    def matrix(self) -> Tensor:
        """``[D, D]``: the factor, also where that is diagonal."""
        return torch.diag(self.factor) if self.factor.dim() == 1 else self.factor

    def variances(self) -> Tensor:
        """``[D]``: of each coordinate by itself."""
        return self.factor.square() if self.factor.dim() == 1 else self.factor.square().sum(-1)

    def whitened(self, away: Tensor) -> Tensor:
        """``[D, ...]``: steps from the location, ``[D, ...]``, in units of the factor."""
        if self.factor.dim() == 1:
            return away / self.factor.reshape(-1, *(1,) * (away.dim() - 1))
        columns = away.reshape(len(away), -1)
        found: Tensor = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return found.reshape(away.shape)

    def moved(self, location: Tensor) -> Whitening:
        """The same widths around another place, ``[D]``."""
        return Whitening(self.sizes, location.to(self.location), self.factor)

    def widths(self) -> Tensor:
        """``[D]``: each coordinate's standard deviation given all others.

        They are the standard deviations of the best independent Normals for Normal(location, factor
        factor^T).
        """
        if self.factor.dim() == 1:
            return self.factor
        identity = torch.eye(len(self.factor), dtype=self.factor.dtype, device=self.factor.device)
        inverse = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        widths: Tensor = inverse.square().sum(0).rsqrt()
        return widths

    def by_site(self, vector: Tensor) -> dict[str, Tensor]:
        """``[size]`` by site, of a ``[D]`` vector."""
        parts = vector.split(list(self.sizes.values()))
        return dict(zip(self.sizes, parts, strict=True))

    def _places(self, name: str) -> Tensor:
        ends = torch.tensor(list(self.sizes.values())).cumsum(0)
        end = int(ends[list(self.sizes).index(name)])
        return torch.arange(end - self.sizes[name], end)
