"""Discrete latents at draws of all others: draws and probabilities of their states."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from ppl_vi.program.layout import plate_frames, select_dims
from ppl_vi.program.marginalization import packed_terms
from ppl_vi.program.messengers import Draw
from ppl_vi.program.particles import model_particles
from ppl_vi.program.run import run_guide
from ppl_vi.program.structure import Structure
from ppl_vi.program.tracing import Pair, sample_sites


def squeezed(structure: Structure, name: str, draws: Tensor) -> Tensor:
    """``[num_draws, *plates, *event]`` of a site's draws, without the dimensions in between."""
    site = structure.sites[name]
    dims = [structure.plates[plate].dim for plate in site.plates]
    return select_dims(draws, [-draws.dim() + site.event_dim, *dims], site.event_dim, name)


def squeezed_shape(structure: Structure, name: str) -> torch.Size:
    """``[*plates, *event]`` of a site, without the dimensions in between."""
    site = structure.sites[name]
    event = site.shape[len(site.shape) - site.event_dim :]
    return torch.Size([structure.plates[plate].size for plate in site.plates]) + event


def draw_marginalized(
    structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_draws: int
) -> dict[str, Tensor]:
    """Draw summed-out sites one after the other, each given those before it, the rest summed out."""
    states = _SummedOut(structure, pair, values, num_draws)
    return {name: states.draw(name) for name in structure.marginalized}


def state_probabilities(
    structure: Structure,
    pair: Pair,
    values: Mapping[str, Tensor],
    num_draws: int,
    name: str,
    draw: Draw,
) -> Tensor:
    """``[num_draws, *plates, states]``: of a discrete site, given draws of others.

    One that is summed out has its exact conditional, the other summed-out sites summed out as well; one
    that the guide draws has the guide's probabilities.

    Args:
        structure: of the programs.
        pair: the model and the guide with their arguments.
        values: draws of the guide's sites, ``[num_draws, *shape]``, and row numbers by plate.
        num_draws: how many.
        name: of the site, whose events are single values.
        draw: repeats the draws of the guide.
    """
    with torch.no_grad(), pyro.validation_enabled(False):
        if name in structure.marginalized:
            return _SummedOut(structure, pair, values, num_draws).probabilities(name)
        rows = structure.row_numbers(values)
        batched = run_guide(structure, pair, draw, num_draws, rows).latents[name].batched
        if batched is None:  # the guide runs draw by draw
            states = torch.arange(structure.sites[name].support_size, device=values[name].device)
            return squeezed(structure, name, values[name]).unsqueeze(-1).eq(states).float()
        support = batched.distribution.enumerate_support(expand=False)
        every = [batched.place(batched.distribution.log_prob(value).exp()) for value in support]
        return torch.stack(every, -1)


class _SummedOut:
    """The discrete latents that the guide leaves out, at draws of all others."""

    def __init__(
        self, structure: Structure, pair: Pair, values: Mapping[str, Tensor], num_draws: int
    ) -> None:
        self._structure, self._num_draws = structure, num_draws
        self._trace = model_particles(structure, pair, values, num_draws)
        packed_by_plates, self._symbols = packed_terms(self._trace, structure.marginalized)
        self._terms, self._present = _without_singletons(packed_by_plates)

    def draw(self, name: str) -> Tensor:
        """``[num_draws, *shape]``: drawn given the draws before, which it joins."""
        site = sample_sites(self._trace)[name]
        support = _support(site)
        logits, symbol = self._logits(site)
        if logits is None:
            index = torch.zeros((), dtype=torch.long)
        else:
            last = logits._pyro_dims.index(symbol)
            labels: Any = Categorical(logits=logits[...].movedim(last, -1)).sample()
            labels._pyro_dims = logits._pyro_dims.replace(symbol, "")
            for key, group in self._terms.items():
                self._terms[key] = [
                    packed.gather(term, labels, symbol) if symbol in term._pyro_dims else term
                    for term in group
                ]
            self._symbols.remove(symbol)
            index = packed.unpack(labels, self._trace.symbol_to_dim)
        drawn: Tensor = support[self._placed(index, site)]
        return drawn.reshape(self._num_draws, *self._structure.sites[name].shape)

    def probabilities(self, name: str) -> Tensor:
        """``[num_draws, *plates, states]``, the other sites summed out."""
        site = sample_sites(self._trace)[name]
        logits, symbol = self._logits(site)
        if logits is None:
            return self._placed(torch.ones(()), site).unsqueeze(-1)
        last = logits._pyro_dims.index(symbol)
        every = logits[...].movedim(last, -1).softmax(-1)
        states = []
        for index in range(every.shape[-1]):
            state: Any = every[..., index].clone()
            state._pyro_dims = logits._pyro_dims.replace(symbol, "")
            states.append(self._placed(packed.unpack(state, self._trace.symbol_to_dim), site))
        return torch.stack(states, -1)

    def _logits(self, site: Mapping[str, Any]) -> tuple[Any, str]:
        """Packed, by state of the site, and the symbol of these; None for a support of one value."""
        symbol = site["infer"]["_enumerate_symbol"]
        if symbol not in self._symbols:
            return None, symbol
        plates = self._trace.plate_to_symbol
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        ordinal = self._present.intersection(plates[frame.name] for frame in frames)
        logits = contract_to_tensor(
            OrderedDict(self._terms),
            set(self._symbols),
            target_ordinal=ordinal,
            target_dims={symbol},
        )
        return logits, symbol

    def _placed(self, tensor: Tensor, site: Mapping[str, Any]) -> Tensor:
        """``[num_draws, *plates]`` of an unpacked tensor."""
        frames = plate_frames(site)
        dims = [self._structure.particle_dim, *(frame.dim for frame in frames)]
        sizes = [self._num_draws, *(frame.size for frame in frames)]
        return select_dims(tensor, dims, 0, site["name"]).expand(sizes)


def _without_singletons(
    packed_by_plates: Mapping[frozenset[str], Sequence[Any]],
) -> tuple[dict[frozenset[str], list[Any]], frozenset[str]]:
    """The terms by plates of more than one element, and all dimensions that are left.

    A plate of one element leaves no dimension in any term, and Pyro cannot contract over it.
    """
    every = [term for group in packed_by_plates.values() for term in group]
    present = frozenset(dim for term in every for dim in term._pyro_dims)
    terms: dict[frozenset[str], list[Any]] = {}
    for plates, group in packed_by_plates.items():
        terms.setdefault(plates & present, []).extend(group)
    return terms, present


def _support(site: Mapping[str, Any]) -> Tensor:
    """The values of an enumerated site, ``[support, *event]``."""
    value, event_dim = site["value"], site["fn"].event_dim
    values: Tensor = value.reshape(-1, *value.shape[value.dim() - event_dim :])
    return values
