"""Effect handlers of our own: drawing, row numbers, batch scale, starting values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vi.errors import ModelError
from ppl_vi.program.layout import feasible_value, is_improper
from ppl_vi.program.row_draws import Part, drawn_by_rows, row_dim

Draw = Callable[[str, Any], Tensor]
"""How a site is drawn: ``draw(name, distribution) -> value``."""


@contextmanager
def counted(times: Tensor | float, mask: Tensor | bool | None = None) -> Iterator[None]:
    """Sites within it count as many times as this says: Pyro's ``poutine.scale``.

    Args:
        times: a number, or one for each element of the sites' plates.
        mask: which elements count at all, by ``poutine.mask``; None for all of them.
    """
    with poutine.scale(scale=times), nullcontext() if mask is None else poutine.mask(mask=mask):
        yield


@contextmanager
def unheard() -> Iterator[None]:
    """Within it, programs run without what stands around them: traces, plates and scales."""
    around, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        with poutine.block():
            yield
    finally:
        _DIM_ALLOCATOR._stack = around


class DrawSites(Messenger):
    """Draw every unobserved site with ``draw(name, distribution)``.

    It must stand outside the particle plate, where the distribution is already expanded.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        msg["value"] = drawn_as_rows(msg, lambda: self.draw(msg["name"], msg["fn"]))
        msg["done"] = True


_PLATES_IN_PARTS: list[DataPlate] = []
"""The handlers around, innermost last, of a batch that several processes share."""


def drawn_as_rows(msg: Any, draw: Callable[[], Tensor]) -> Tensor:
    """Draw a site; one of rows that several processes share, as a process alone would draw it."""
    around = _PLATES_IN_PARTS[-1] if _PLATES_IN_PARTS else None
    dim = None if around is None else row_dim(msg["cond_indep_stack"], around.names)
    if around is None or around.part is None or dim is None:
        return draw()
    return drawn_by_rows(around.part, msg["fn"], dim, draw)


class Redraw(Messenger):
    """Draw observed sites anew; values that a program computes (``pyro.deterministic``) stay so."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


class FeasibleValues(Messenger):
    """Let sites with an improper prior, which nobody can draw from, stand at some value."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and is_improper(msg["fn"]):
            msg["value"] = feasible_value(msg["fn"])
            msg["done"] = True


class ReuseValues(Messenger):
    """Give the named sites and plates these values; observed sites keep theirs."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class MarkEnumerated(Messenger):
    """Ask Pyro's enumeration for the named sites; it must stand inside ``Enumeration``."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["infer"] = {**msg["infer"], "enumerate": "parallel"}


class Enumeration(EnumMessenger):
    """Pyro's parallel enumeration, made to run under ``torch.vmap`` and on values given beforehand."""

    def _pyro_sample(self, msg: Any) -> None:
        # Pyro passes over sites that have their value, though their density may be enumerated too.
        super()._pyro_sample({**msg, "done": False, "is_observed": True} if msg["done"] else msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["value"] is not None:
            # Pyro asks for the shape through ``.data``, which vmap forbids: show it the shape alone.
            shape_only = torch.empty(msg["value"].shape, device="meta")
            super()._pyro_post_sample({**msg, "value": shape_only})


class VisitSites(Messenger):
    """Show every sample site and subsampled plate to ``visit(name, message)`` before it is drawn.

    It must stand outside all plates, where the distribution is already expanded.
    """

    def __init__(self, visit: Callable[[str, Any], None]) -> None:
        super().__init__()
        self.visit = visit

    def _pyro_sample(self, msg: Any) -> None:
        self.visit(msg["name"], msg)


class DataPlate(Messenger):
    """Make minibatches count for the whole data set, in the model and in the guide.

    A plate of the batch's own size has its sites scaled by N / B; a plate of size N is handed the
    batch's row numbers, and Pyro scales it. Either way the rest of the engine sees a plate with
    ``full_size`` N and ``size`` B, as if Pyro had subsampled.

    Args:
        names: the plates over the data.
        num_rows: N, the number of rows of the whole data set.
        rows: ``[B]`` row numbers of this batch, or ``None`` where the data do not tell them.
        size: B, the number of rows of this batch.
        part: where they stand among those of all processes, if there are several.
    """

    def __init__(
        self,
        names: Collection[str],
        num_rows: int,
        rows: Tensor | None,
        size: int,
        part: Part | None = None,
    ) -> None:
        super().__init__()
        self.names, self.num_rows, self.rows, self.size = names, num_rows, rows, size
        self.part = part

    def __enter__(self) -> Any:
        _PLATES_IN_PARTS.append(self)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        _PLATES_IN_PARTS.remove(self)
        super().__exit__(*raised)

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._hand_over_rows(msg)
            return
        if self.part is not None and not (msg["done"] or msg["is_observed"]):
            fn, args, kwargs = msg["fn"], msg["args"], msg["kwargs"]  # in an objective of Pyro's
            msg["value"] = drawn_as_rows(msg, lambda: fn(*args, **kwargs))
            msg["done"] = True
        self._scale(msg)

    def _hand_over_rows(self, msg: Any) -> None:
        if msg["name"] not in self.names or msg["fn"].size != self.num_rows or msg["done"]:
            return
        if self.rows is None and self.size == self.num_rows:
            return  # all of them: the plate's own numbers are theirs
        if self.rows is None:
            raise ModelError(
                f"plate '{msg['name']}' has the size of the whole data set ({self.num_rows}), but a "
                f"DataLoader does not tell which rows are in a batch. Pass the Dataset itself with "
                f"batch_size=, or give the plate the size of the batch."
            )
        msg["value"] = self.rows
        msg["done"] = True

    def _scale(self, msg: Any) -> None:
        frames = list(msg["cond_indep_stack"])
        for i, frame in enumerate(frames):
            if frame.name in self.names and frame.full_size == frame.size == self.size:
                msg["scale"] = msg["scale"] * (self.num_rows / self.size)
                frames[i] = frame._replace(full_size=self.num_rows)
        msg["cond_indep_stack"] = tuple(frames)


class StartingValues(Messenger):
    """Start learned parameters of the model (``pyro.param``) at given values, by name."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.values and name not in pyro.get_param_store() and len(msg["args"]) > 1:
            # The store would keep, and train, the very tensor that it is given.
            msg["args"] = (name, self.values[name].detach().clone(), *msg["args"][2:])


class HoldParameters(StartingValues):
    """Hold learned parameters of the model (``pyro.param``) at given values, by name."""

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = msg["value"].detach()


class KeepFrozen(Messenger):
    """Keep module parameters frozen that were frozen: Pyro's param store turns their gradient on."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(init, torch.nn.Parameter) and not init.requires_grad:
            self.frozen[msg["name"]] = init

    def _pyro_post_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(init, torch.nn.Parameter) and msg["value"].data_ptr() != init.data_ptr():
            # Pyro would go on with the other one, and leave this one as it is.
            raise ModelError(
                f"parameter '{msg['name']}' is the name of two tensors in Pyro's store, so that one of "
                f"them would never be trained. Give a module a name of its own, as in "
                f"super().__init__('encoder') of a PyroModule, or clear the store of other models."
            )
        if msg["name"] in self.frozen:
            self.frozen[msg["name"]].requires_grad_(False)


def hide(model: Callable[..., Any], names: Collection[str]) -> Callable[..., Any]:
    """The model with the named sites hidden from whoever looks on, an autoguide for instance."""
    hidden: Callable[..., Any] = poutine.block(model, hide=list(names))
    return hidden


def unobserved(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model with its observed sites drawn anew."""

    def redrawn(*args: Any, **kwargs: Any) -> Any:
        with Redraw():
            return model(*args, **kwargs)

    return redrawn


def enumerated(model: Callable[..., Any], names: Collection[str]) -> Callable[..., Any]:
    """The model with the named sites marked for Pyro's own enumerating objectives."""

    def marked(*args: Any, **kwargs: Any) -> Any:
        with MarkEnumerated(names):
            return model(*args, **kwargs)

    return marked
