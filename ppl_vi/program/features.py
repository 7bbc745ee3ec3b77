"""What the observed sites of a program say of each element of a latent's plates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Categorical, Multinomial, OneHotCategorical

from ppl_vi.distributions import IndexedCategorical
from ppl_vi.program.layout import innermost, plate_frames

_LABELS = (Categorical, OneHotCategorical, IndexedCategorical)
"""Their values are names, between which there are no distances."""


def features(trace: Any, latent: str, observed: str) -> Tensor | None:
    """``[elements, D]``: what a site observes of each element of a latent's plates.

    Counts of a Multinomial become shares. What is masked out is NaN.

    Args:
        trace: of the model.
        latent: name of a site; elements are in the order of its plates, outermost first.
        observed: name of an observed site.

    Returns:
        None where the observed site is not in all plates of the latent, or its values are labels.
    """
    site = trace.nodes[observed]
    own, around = plate_frames(trace.nodes[latent]), plate_frames(site)
    family, events = innermost(site["fn"]), site["fn"].event_dim
    if isinstance(family, _LABELS) or not {f.name for f in own} <= {f.name for f in around}:
        return None
    value = site["value"].detach()
    if isinstance(family, Multinomial):
        value = value / value.sum(-1, keepdim=True)
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    for mask in _masks(site):
        value = torch.where(mask, value, math.nan)
    depth = max((-frame.dim for frame in around), default=0)
    surplus = value.dim() - events - depth
    if value.shape[: max(surplus, 0)].numel() != 1:
        return None  # masked by another latent
    value = value.reshape([1] * -surplus + list(value.shape[max(surplus, 0) :]))
    sizes = list(value.shape)
    for frame in own:
        sizes[depth + frame.dim] = frame.size
    value = value.expand(sizes).movedim([depth + f.dim for f in own], list(range(len(own))))
    return value.reshape(math.prod(f.size for f in own), -1) if value.numel() else None


def _masks(site: Any) -> Iterator[Tensor]:
    """What keeps entries out of a site's density, laid out as its value."""
    fn = site["fn"]
    found = [(site["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            found.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    for mask, events in found:
        if mask is not None:
            laid = torch.as_tensor(mask, device=site["value"].device)
            # Pyro expands it over enumerated latents.
            once = laid[tuple(slice(0, 1 if stride == 0 else None) for stride in laid.stride())]
            yield once.reshape([*once.shape, *[1] * events])
