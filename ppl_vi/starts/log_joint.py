"""The log joint density of a program as a function of one unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import Pair, Structure, draw_plainly, expanded_parameter, run
from ppl_vi.randomness import forked_rng

_ELEMENTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class LogJoint:
    """log p(x, z(u)) + log |dz / du|, with finite discrete latents summed out and N / B applied.

    u are the unconstrained values of all latents, of the rows at hand, laid end to end. It and what
    comes of it are float64, while the program computes in its own dtype.

    Args:
        structure: of the pair.
        pair: the model, and a guide of independent Normals that draws every latent ``z`` at an
            auxiliary site ``z_unconstrained``.
    """

    structure: Structure
    pair: Pair
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        latents = self.structure.of_kind("latent")
        sites = {name: self.structure.sites[_site(name)] for name in latents}
        object.__setattr__(self, "sizes", {n: site.shape.numel() for n, site in sites.items()})

    @property
    def dim(self) -> int:
        """How many numbers u has."""
        return sum(self.sizes.values())

    @property
    def elements(self) -> int:
        """How many numbers the program computes at a point, at least."""
        return max(1, sum(site.shape.numel() for site in self.structure.sites.values()))

    @property
    def together(self) -> bool:
        """Whether many points are computed at once, not one by one."""
        return "loop" not in (self.structure.guide_particles, self.structure.model_particles)

    def start(self) -> tuple[Tensor, Tensor]:
        """``[D]``: the locations and the widths of the guide's Normals."""
        seen: dict[str, Any] = {}

        def draw(name: str, distribution: Any) -> Tensor:
            seen[name] = distribution
            return draw_plainly(name, distribution)

        with torch.no_grad(), forked_rng(seed=0):
            run(self.structure, self.pair, draw, 1)
        locations, widths = (
            [expanded_parameter(seen[_site(n)], p).reshape(-1).double() for n in self.sizes]
            for p in ("loc", "scale")
        )
        return torch.cat(locations).detach(), torch.cat(widths).detach()

    def values(self, u: Tensor) -> Tensor:
        """``[S]`` of ``[S, D]``; what is not a number counts as impossible."""
        with torch.no_grad():
            found = torch.cat([self._run(part) for part in u.split(self._at_once)])
        return found.nan_to_num(nan=-torch.inf)

    def gradients(self, u: Tensor) -> Tensor:
        """``[S, D]`` of ``[S, D]``."""
        found = []
        for part in u.detach().split(self._at_once):
            point = part.clone().requires_grad_()
            with torch.enable_grad():
                found += torch.autograd.grad(self._run(point).sum(), point)
        return torch.cat(found)

    def hessian(self, u: Tensor) -> Tensor:
        """``[D, D]`` at one point ``[D]``, by automatic differentiation."""
        rows: list[Tensor] = []
        for numbers in torch.arange(len(u), device=u.device).split(self._at_once):
            points = u.detach().expand(len(numbers), -1).clone().requires_grad_()
            with torch.enable_grad():
                total = self._run(points).sum()
                (first,) = torch.autograd.grad(total, points, create_graph=True)
                own = first.gather(1, numbers.unsqueeze(1)).sum()
                rows += torch.autograd.grad(own, points)
        found = torch.cat(rows)
        return (found + found.mT) / 2

    @property
    def _at_once(self) -> int:
        return max(1, _ELEMENTS_AT_ONCE // self.elements)

    def _run(self, u: Tensor) -> Tensor:
        """``[S]`` of ``[S, D]``, its gradient attached."""
        blocks = u.split(list(self.sizes.values()), -1)
        parts = {_site(name): block for name, block in zip(self.sizes, blocks, strict=True)}
        rows = {name: iter(block) for name, block in parts.items()}
        one_by_one = self.structure.guide_particles == "loop"

        def draw(name: str, distribution: Any) -> Tensor:
            if name not in parts:
                return draw_plainly(name, distribution)
            own = next(rows[name]) if one_by_one else parts[name]
            dtype = self.structure.sites[name].dtype
            value: Tensor = own.to(dtype).reshape(distribution.shape())
            return value

        with forked_rng(seed=0):  # plates that subsample by themselves take the same rows each time
            made = run(self.structure, self.pair, draw, len(u))
        factors = [factor for factor in made.factors if factor.sites[0] not in parts]
        total: Tensor = made.summed(factors, ()).reshape(len(u)).double()
        return total


class WholeLogJoint:
    """The log joint of a job's whole data set, summed over its batches.

    Args:
        job: the model and its data.
        guide: of independent Normals, as ``LogJoint`` needs it; latents in the plates of minibatches
            are not allowed.
    """

    def __init__(self, job: Job, guide: Callable[..., Any]) -> None:
        self._job, self._guide = job, guide

    def values(self, u: Tensor) -> Tensor:
        """``[S]`` of ``[S, D]``."""
        return self._summed(lambda density: density.values(u))

    def gradients(self, u: Tensor) -> Tensor:
        """``[S, D]`` of ``[S, D]``."""
        return self._summed(lambda density: density.gradients(u))

    def hessian(self, u: Tensor) -> Tensor:
        """``[D, D]`` of ``[D]``."""
        return self._summed(lambda density: density.hessian(u))

    def _summed(self, evaluate: Callable[[LogJoint], Tensor]) -> Tensor:
        total: Tensor | float = 0.0
        for pair, share, handler in self._job.weighted_pairs():
            with handler:
                own = pair._replace(guide=self._guide)
                total = total + share * evaluate(LogJoint(structure_of(own), own))
        return self._job.ranks.sum(torch.as_tensor(total))


def _site(name: str) -> str:
    """Where Pyro's mean-field guide draws the numbers of a latent."""
    return f"{name}_unconstrained"
