"""What a guide is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppl_vi.starts.modes import Mode
from ppl_vi.starts.whitening import Whitening


@dataclass(frozen=True)
class GuideStart:
    """What a guide is built from, besides the model.

    Attributes:
        init_loc_fn: gives a site's starting value, as Pyro's autoguides ask for it.
        create_plates: gives the plates over the rows of the data, or None without minibatches.
        init_scale: a typical standard deviation, in unconstrained space.
        whitening: where the posterior is and how wide, in unconstrained space, of the continuous
            sites outside the plates of minibatches; None where that was not found.
        search: looks for modes of the posterior from so many starts, for guides that can have
            several; None where the model or the user says where to start.
    """

    init_loc_fn: Callable[..., Any]
    create_plates: Callable[..., Any] | None = None
    init_scale: float = 0.1
    whitening: Whitening | None = None
    search: Callable[[int], tuple[Mode, ...]] | None = None
