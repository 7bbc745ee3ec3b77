"""What a failure of a user's program teaches: which site, what was expected and found, the remedy.

Pyro and torch say what went wrong in their own words, of which a person may know none. Each lesson
knows one kind of mistake by what they say, and looks up the rest: the shapes, the parameters and the
arguments that took part.
"""

from __future__ import annotations

from collections.abc import Callable

from ppl_vi.program.number_lessons import (
    float_labels,
    impossible_parameter,
    numbers_of_two_sizes,
    two_devices,
)
from ppl_vi.program.scene import Scene
from ppl_vi.program.shape_lessons import all_states_at_once, out_of_bounds, plate_mismatch

_LESSONS: tuple[Callable[[Scene], str | None], ...] = (
    plate_mismatch,
    impossible_parameter,
    float_labels,
    out_of_bounds,
    two_devices,
    numbers_of_two_sizes,
    all_states_at_once,
)


def taught(scene: Scene) -> str | None:
    """What the failure teaches, in one or two sentences; None where no lesson is known of it."""
    return next((found for lesson in _LESSONS if (found := lesson(scene))), None)
