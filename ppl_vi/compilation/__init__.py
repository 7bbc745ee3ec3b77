"""The steps of a fit, captured once from its programs and compiled."""

from ppl_vi.compilation.building import Builds
from ppl_vi.compilation.capturing import Captured, capture
from ppl_vi.compilation.choosing import Execute, Execution, Mode, Wish
from ppl_vi.compilation.compiling import CompiledGraph, compiled, hastened
from ppl_vi.compilation.costs import compile_seconds, repays
from ppl_vi.compilation.cutting import Cut, cut
from ppl_vi.compilation.folding import folded

__all__ = [
    "Builds",
    "Captured",
    "CompiledGraph",
    "Cut",
    "Execute",
    "Execution",
    "Mode",
    "Wish",
    "capture",
    "compile_seconds",
    "compiled",
    "cut",
    "folded",
    "hastened",
    "repays",
]
