"""Which factors does a draw reach, and does the program mix the elements of a plate?

A tracker follows every latent through the operations that torch dispatches, by the memory that they
read and write, so that views, in-place writes and sampling itself are seen. What leaves the tensors
(``.item()``, control flow) counts as reaching everything: variance is lost, never truth. Draws are
then perturbed in halves of each plate: a factor that moves in the other half shows that the program
mixes the plate's elements. The same runs see what the tracker can't (``.numpy()``, ``.tolist()``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ppl_vi.observing import Observer, memory_of, written
from ppl_vi.program.layout import unmasked
from ppl_vi.program.messengers import Draw
from ppl_vi.program.run import Factor, Run, run
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair
from ppl_vi.randomness import forked_rng, seed_all

FactorKey = tuple[str, tuple[str, ...]]
_ROUNDS = 3


@dataclass(frozen=True)
class Dependencies:
    """What the draw of each site reaches.

    Attributes:
        downstream: for each site, the factors (by ``key``) whose value or draw may depend on it,
            its own ``log_q`` among them.
        mixed: for each site whose credit is asked for, the plates whose elements the program mixes
            downstream of it.
        plates: the plates of each factor.
    """

    downstream: Mapping[str, frozenset[FactorKey]]
    mixed: Mapping[str, frozenset[str]]
    plates: Mapping[FactorKey, tuple[str, ...]] = field(default_factory=dict)

    def draws_after(self, site: str) -> frozenset[str]:
        """The sites of the guide whose draw may depend on the site's."""
        factors = self.downstream[site]
        return frozenset(s for origin, (s, *_) in factors if origin == "guide" and s != site)

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
        sites: those whose plates are to be looked into.
    """
    # One particle, run alone: no other particle, no vmap, nothing that hides an operation.
    alone = Structure(structure.sites, structure.plates, structure.nesting, "loop", "loop")
    with forked_rng(), torch.no_grad():
        reached, plates = _track(alone, pair)
        with _shaken_parameters(pair):
            trials = _Trials(alone, _without_zeros(pair))
            perturbed = {site: _perturb(trials, site, site in sites) for site in reached}
    return Dependencies(
        {site: reached[site] | moved for site, (moved, _) in perturbed.items()},
        {site: mixed for site, (_, mixed) in perturbed.items() if site in sites},
        plates,
    )


def drawn_together(structure: Structure, dependencies: Dependencies) -> tuple[frozenset[str], ...]:
    """The sites of the guide in groups whose log q cannot be told apart, in the guide's order.

    An auxiliary site belongs to the latents that the guide makes from its draw.
    """
    groups = [{name} for name in structure.drawn]
    for name in structure.of_kind("auxiliary"):
        joined = {name, *dependencies.draws_after(name)}
        touched = [group for group in groups if group & joined]
        groups = [group for group in groups if not group & joined]
        groups.append(set().union(*touched))
    order = {name: i for i, name in enumerate(structure.drawn)}
    groups.sort(key=lambda group: min(order[name] for name in group))
    return tuple(map(frozenset, groups))


def _track(
    structure: Structure, pair: Pair
) -> tuple[dict[str, frozenset[FactorKey]], dict[FactorKey, tuple[str, ...]]]:
    """What each draw reaches by tensors alone, and the plates of each factor."""
    tracker = Tracker()

    def draw(name: str, distribution: Any) -> Tensor:
        value: Tensor = distribution().clone()  # its own memory: a Delta's is its parameter's
        tracker.mark(value, name)
        return value

    with tracker:
        traced = run(structure, pair, draw, 1)
        upstream = {key(f): tracker.origins(f.signed) for f in traced.factors}
    reached = {n: frozenset(k for k, up in upstream.items() if n in up) for n in structure.drawn}
    return reached, {key(factor): factor.plates for factor in traced.factors}


class Tracker(Observer):
    """Remember which latents each piece of memory depends on."""

    def __init__(self) -> None:
        super().__init__()
        self._origins: dict[int, frozenset[str]] = {}
        self._alive: list[Any] = []  # a freed storage's address could come back as another's
        self._escaped: frozenset[str] = frozenset()

    def mark(self, tensor: Tensor, name: str) -> None:
        """``tensor`` is a draw of the latent ``name``."""
        self._record(tensor, self.origins(tensor) | {name})

    @property
    def escaped(self) -> frozenset[str]:
        """The latents that became a Python number, a branch or a shape, beyond following."""
        return self._escaped

    def origins(self, tensor: Tensor) -> frozenset[str]:
        """The latents that the tensor depends on."""
        if tensor.layout != torch.strided:
            return self._escaped
        return self._origins.get(memory_of(tensor), frozenset()) | self._escaped

    def _record(self, tensor: Tensor, origins: frozenset[str]) -> None:
        if tensor.layout != torch.strided:
            self._escaped |= origins  # a sparse tensor has no memory of its own to follow
            return
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        self._origins[storage._cdata] = origins

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        origins = frozenset[str]().union(*(self.origins(tensor) for tensor in inputs))
        result = func(*args, **kwargs)
        outputs = tree_leaves(result)
        # A Python number, a branch or a shape is no longer to be followed.
        if any(not isinstance(leaf, Tensor) for leaf in outputs if leaf is not None):
            self._escaped |= origins
        for tensor in _deciding_on_shape(func, inputs):
            self._escaped |= self.origins(tensor)
        for tensor in (*written(func, args, kwargs), *outputs):
            if isinstance(tensor, Tensor):
                self._record(tensor, self.origins(tensor) | origins)
        return result


def _deciding_on_shape(func: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs whose values, not only their shapes, decide on the shape of the output."""
    if func is torch.ops.aten.index.Tensor:
        return [index for index in inputs[1:] if index.dtype in (torch.bool, torch.uint8)]
    return list(inputs) if torch.Tag.dynamic_output_shape in func.tags else []


@contextmanager
def _shaken_parameters(pair: Pair) -> Iterator[None]:
    """Move every parameter a little: a weight that starts at zero hides what it will carry."""
    modules = [program for program in pair[:2] if isinstance(program, torch.nn.Module)]
    stored = [parameter for _, parameter in pyro.get_param_store().named_parameters()]
    every = {id(p): p for p in (*stored, *(p for module in modules for p in module.parameters()))}
    shaken = [p for p in every.values() if p.is_floating_point()]
    kept = [p.data for p in shaken]
    try:
        for parameter in shaken:
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        yield
    finally:
        for parameter, data in zip(shaken, kept, strict=True):
            parameter.data = data  # in place, a graph that holds the parameter would be invalid


def _without_zeros(pair: Pair) -> Pair:
    """The pair with small numbers for zeros in floating arguments: a weight of 0 hides its input."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.where(leaf == 0, 0.1 * torch.rand_like(leaf), leaf)
        return 0.1 if isinstance(leaf, float) and leaf == 0 else leaf

    args, kwargs = tree_map(moved, (pair.args, pair.kwargs))
    return pair._replace(args=args, kwargs=kwargs)


def _perturb(
    trials: _Trials, site: str, in_parts: bool
) -> tuple[frozenset[FactorKey], frozenset[str]]:
    """Redraw parts of a site: which factors move, and along which plates in the other part?"""
    structure = trials.structure
    moved: set[FactorKey] = set()
    mixed: set[str] = set()
    if structure.sites[site].fixed:
        return frozenset(), frozenset()
    for seed, (plate, parts) in enumerate(_parts(structure, site, in_parts)):
        before = trials.before(seed)
        for redrawn in parts:
            after = trials.after(seed, site, _along(structure, plate, redrawn))
            for old, new in zip(before.factors, after.factors, strict=True):
                # The same random numbers and operations give the same bits, where nothing reaches.
                change = (old.signed != new.signed) & ~(old.signed.isnan() & new.signed.isnan())
                if change.any():
                    moved.add(key(old))
                if plate in old.plates:
                    along = change.movedim(1 + old.plates.index(plate), -1)
                    if along[..., ~redrawn].any():
                        mixed.add(plate)
    return frozenset(moved), frozenset(mixed)


def _parts(
    structure: Structure, site: str, in_parts: bool
) -> Iterator[tuple[str | None, list[Tensor]]]:
    """Halves of each plate of the site: any two elements are in different halves at least once."""
    sizes = {plate: structure.plates[plate].size for plate in structure.sites[site].plates}
    divisible = {plate: size for plate, size in sizes.items() if size > 1 and in_parts}
    for plate, size in divisible.items():
        bits = (size - 1).bit_length()
        for r in range(max(_ROUNDS, bits)):
            half = (torch.arange(size) >> r % bits) % 2 == 1
            yield plate, [half, ~half]
    if not divisible:
        rounds = _ROUNDS if in_parts else 1
        yield from [(None, [torch.ones(1, dtype=torch.bool)])] * rounds


def _along(structure: Structure, plate: str | None, redrawn: Tensor) -> Tensor:
    """The redrawn elements, laid out to broadcast against the site's batch shape."""
    return (
        redrawn if plate is None else redrawn.reshape(-1, *[1] * (-structure.plates[plate].dim - 1))
    )


class _Trials:
    """Runs on fixed random numbers, as they are and with elements of one site drawn once more."""

    def __init__(self, structure: Structure, pair: Pair) -> None:
        self.structure, self.pair = structure, pair
        self._before: dict[int, Run] = {}
        self._drawn: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def before(self, seed: int) -> Run:
        """The run with nothing drawn anew; the same for every site."""
        if seed not in self._before:

            def draw(name: str, distribution: Any) -> Tensor:
                value: Tensor = distribution()
                self._drawn[seed, name] = value, unmasked(distribution).log_prob(value)
                return value

            self._before[seed] = self._run(seed, draw)
        return self._before[seed]

    def after(self, seed: int, site: str, redrawn: Tensor) -> Run:
        """The run with the ``redrawn`` elements of the site drawn once more.

        Other sites keep their values wherever their distribution is still the same.
        """

        def draw(name: str, distribution: Any) -> Tensor:
            before, log_prob = self._drawn[seed, name]
            if name == site:
                return _where(distribution, redrawn, _another(distribution, before), before)
            # Rejection takes more random numbers for some elements, which shifts those of the rest.
            same = unmasked(distribution).log_prob(before) == log_prob
            return _where(distribution, same, before, distribution())

        return self._run(seed, draw)

    def _run(self, seed: int, draw: Draw) -> Run:
        seeds = itertools.count(1_000 * seed)

        def seeded(name: str, distribution: Any) -> Tensor:
            # Each site has its own random numbers, and so has what comes after it, however many the
            # sites before it took.
            seed_all(next(seeds))
            value = draw(name, distribution)
            seed_all(next(seeds))
            return value

        with forked_rng(seed=seed):
            return run(self.structure, self.pair, seeded, 1)


def _where(distribution: Any, elements: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` in the elements (of the batch shape, or broadcast to it), else ``other``."""
    elements = elements.reshape(elements.shape + (1,) * distribution.event_dim)
    return torch.where(elements.to(one.device), one, other)


def _another(distribution: Any, value: Tensor) -> Tensor:
    """A draw that differs from ``value`` wherever a few tries find one."""
    other = value
    events = tuple(range(-distribution.event_dim, 0))
    for _ in range(8):
        same = other == value
        same = same.all(events, keepdim=True) if events else same
        other = torch.where(same, distribution(), other)
    return other
