"""Which factors does a draw reach, and does the program mix the elements of a plate?

A tracker follows every latent through the operations that torch dispatches, by the memory that they
read and write, so that views, in-place writes and sampling itself are seen. What leaves the tensors
(``.item()``, control flow) counts as reaching everything: variance is lost, never truth. Draws are
then perturbed in random halves of a plate: a factor that moves in the other half shows that the
program mixes the plate's elements, and the tracker's word is checked by the same runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppl_vi.program.run import Factor, Run, run
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair
from ppl_vi.randomness import forked_rng

FactorKey = tuple[str, tuple[str, ...]]
_HALVES = 3


@dataclass(frozen=True)
class Dependencies:
    """What the draw of each site reaches.

    Attributes:
        downstream: for each site, the factors (by ``key``) whose value or draw may depend on it,
            its own ``log_q`` among them.
        mixed: for each site, the plates whose elements the program mixes downstream of it.
    """

    downstream: Mapping[str, frozenset[FactorKey]]
    mixed: Mapping[str, frozenset[str]]

    def factors_of(self, site: str, run: Run) -> list[Factor]:
        """The factors of a run that are downstream of the site."""
        return [factor for factor in run.factors if key(factor) in self.downstream[site]]

    def credit_plates(self, site: str, run: Run) -> tuple[str, ...]:
        """The site's plates whose elements are independent, so that credit is taken in them."""
        return tuple(p for p in run.latents[site].plates if p not in self.mixed[site])


def key(factor: Factor) -> FactorKey:
    """What names a factor in every run of a program."""
    return factor.origin, factor.sites


def find_dependencies(structure: Structure, pair: Pair, sites: Sequence[str]) -> Dependencies:
    """Follow and perturb the draws of ``sites``; random state is left as it was.

    Args:
        structure: of the pair.
        pair: the model, the guide and their arguments.
        sites: those whose credit is asked for.
    """
    # One particle, run alone: no other particle, no vmap, nothing that hides an operation.
    alone = Structure(structure.sites, structure.plates, structure.nesting, "loop", "loop")
    with forked_rng(), torch.no_grad():
        downstream = _track(alone, pair)
        reached = {site: downstream.get(site, frozenset()) for site in sites}
        mixed: dict[str, frozenset[str]] = {}
        for site in sites:
            plates = []
            for plate in structure.sites[site].plates:
                moved, mixes = _perturb(alone, pair, site, plate)
                reached[site] |= moved
                if mixes:
                    plates.append(plate)
            mixed[site] = frozenset(plates)
    return Dependencies(reached, mixed)


def _track(structure: Structure, pair: Pair) -> dict[str, frozenset[FactorKey]]:
    tracker = _Tracker()

    def draw(name: str, distribution: Any) -> Tensor:
        value: Tensor = distribution().clone()  # its own memory: a Delta's is its parameter's
        tracker.mark(value, name)
        return value

    with tracker:
        traced = run(structure, pair, draw, 1)
        upstream = {key(f): tracker.origins(f.log_prob) for f in traced.factors}
    names = structure.drawn
    return {name: frozenset(k for k, up in upstream.items() if name in up) for name in names}


class _Tracker(TorchDispatchMode):
    """Remember which latents each piece of memory depends on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: dict[int, frozenset[str]] = {}
        self._alive: list[Any] = []  # a freed storage's address could come back as another's
        self._escaped: frozenset[str] = frozenset()

    def mark(self, tensor: Tensor, name: str) -> None:
        """``tensor`` is a draw of the latent ``name``."""
        self._record(tensor, self.origins(tensor) | {name})

    def origins(self, tensor: Tensor) -> frozenset[str]:
        """The latents that the tensor depends on."""
        return self._origins.get(tensor.untyped_storage()._cdata, frozenset()) | self._escaped

    def _record(self, tensor: Tensor, origins: frozenset[str]) -> None:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        self._origins[storage._cdata] = origins

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        origins = frozenset[str]().union(*(self.origins(tensor) for tensor in inputs))
        result = func(*args, **kwargs)
        outputs = tree_leaves(result)
        if any(not isinstance(leaf, Tensor) for leaf in outputs if leaf is not None):
            self._escaped |= origins  # a Python number or a branch: no longer to be followed
        for tensor in (*_written(func, args, kwargs), *outputs):
            if isinstance(tensor, Tensor):
                self._record(tensor, self.origins(tensor) | origins)
        return result


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that the operation writes into."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    writes = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    return [leaf for name in writes for leaf in tree_leaves(given.get(name))]


def _perturb(
    structure: Structure, pair: Pair, site: str, plate: str
) -> tuple[frozenset[FactorKey], bool]:
    """Redraw random halves of a site along a plate: which factors move, and in the other half?"""
    moved: set[FactorKey] = set()
    mixes = False
    size = structure.plates[plate].size
    for trial in range(_HALVES):
        order = torch.randperm(size)
        redrawn = torch.zeros(size, dtype=torch.bool)
        redrawn[order[: max(1, size // 2)]] = True
        before = _run_with(structure, pair, site, plate, None, trial)
        after = _run_with(structure, pair, site, plate, redrawn, trial)
        for old, new in zip(before.factors, after.factors, strict=True):
            change = ~torch.isclose(old.log_prob, new.log_prob, rtol=1e-5, atol=1e-6)
            if not change.any():
                continue
            moved.add(key(old))
            if plate in old.plates:
                along = change.movedim(1 + old.plates.index(plate), -1)
                mixes |= bool(along[..., ~redrawn].any())
    return frozenset(moved), mixes


def _run_with(
    structure: Structure, pair: Pair, site: str, plate: str, redrawn: Tensor | None, seed: int
) -> Run:
    """A run on fixed random numbers, the ``redrawn`` elements of one site drawn once more."""

    def draw(name: str, distribution: Any) -> Tensor:
        value: Tensor = distribution()
        if name != site or redrawn is None:
            return value
        with forked_rng(seed=seed + _HALVES):
            other = _another(distribution, value)
        shape = [1] * value.dim()
        shape[structure.plates[plate].dim - distribution.event_dim] = len(redrawn)
        return torch.where(redrawn.reshape(shape), other, value)

    with forked_rng(seed=seed):
        return run(structure, pair, draw, 1)


def _another(distribution: Any, value: Tensor) -> Tensor:
    """A draw that differs from ``value`` wherever a few tries find one."""
    other = value
    for _ in range(8):
        other = torch.where(other == value, distribution(), other)
    return other
