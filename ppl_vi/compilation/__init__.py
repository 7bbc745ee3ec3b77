"""The steps of a fit, captured once from its programs and compiled."""

from ppl_vi.compilation.choosing import Execute, Execution, Wish

__all__ = ["Execute", "Execution", "Wish"]
