"""The steps of a fit, captured once from its programs and compiled."""

from ppl_vi.compilation.capturing import Captured, capture
from ppl_vi.compilation.choosing import Execute, Execution, Wish

__all__ = ["Captured", "Execute", "Execution", "Wish", "capture"]
