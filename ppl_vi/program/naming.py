"""Errors of a user's programs, in words that name the program, the line, the site and the remedy."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceHandler
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vi.errors import DataError, GuideError, ModelError
from ppl_vi.program.lessons import taught
from ppl_vi.program.scene import Call, Scene
from ppl_vi.user_lines import raised_line


class SitesReached(Messenger):
    """Remember the sites and plates reached so far, so that an error can tell of them."""

    def __init__(self) -> None:
        super().__init__()
        self.last: str | None = None
        self.values: dict[str, Tensor] = {}
        self.empty_plate: str | None = None
        self.subsampled: dict[str, tuple[int, int]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.last = msg["name"]
        elif msg["fn"].size == 0:
            self.empty_plate = msg["name"]

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not site_is_subsample(msg):
            self.values[msg["name"]] = value
        elif len(value) < msg["fn"].size:
            self.subsampled[msg["name"]] = len(value), msg["fn"].size


@contextmanager
def naming_site(what: str, error: type[ValueError], call: Call) -> Iterator[None]:
    """Turn any exception of a user's program into ``error``, which says where it was and what to do.

    Args:
        what: the program, in words.
        error: that is raised.
        call: of the program.
    """
    reached = SitesReached()
    try:
        with reached:
            yield
    except ZeroDivisionError as cause:  # Pyro's word for it
        if reached.empty_plate is None:
            raise
        raise error(
            f"plate '{reached.empty_plate}' of {what} has size 0. Leave the plate and its sites "
            f"out where "
            f"they have no elements, or correct the data that its size comes from."
        ) from cause
    except (ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError) as cause:
        scene = Scene(what, cause, call, reached.values, reached.subsampled)
        inner = _model_inside(cause, call) if error is GuideError else None
        if inner is not None:
            scene, error = inner, ModelError
        if isinstance(cause, ModelError | GuideError | DataError):
            raise type(cause)(
                _first_line(cause)
            ) from cause.__cause__  # Pyro adds a table of shapes
        last = reached.last if inner is None else next(reversed([*inner.sites]), None)
        raise error(taught(scene) or _untaught(scene, last)) from cause


def _model_inside(cause: BaseException, call: Call) -> Scene | None:
    """What failed where a guide, such as an autoguide, runs the model to see its sites."""
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(cause.__traceback__)]
    traced = [o for o in owners if isinstance(o, TraceHandler) and o.fn is not call.program]
    if not traced:
        return None
    nodes = traced[-1].msngr.trace.nodes
    sites = {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}
    return Scene("the model", cause, call, sites)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _untaught(scene: Scene, last: str | None) -> str:
    place = f"at or after site '{last}'" if last else "before its first site"
    line = raised_line(scene.cause)
    found = f"{type(scene.cause).__name__}: {scene.said}".rstrip(".: ")
    return (
        f"{scene.what} could not run ({place}{', ' + line if line else ''}): {found}. Correct "
        f"it, or the "
        f"data that it is called with."
    )
