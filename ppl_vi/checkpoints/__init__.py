"""State on disk: a format that says when it is damaged, and files that are whole or not there."""

from ppl_vi.checkpoints.files import read, write
from ppl_vi.checkpoints.format import State

__all__ = ["State", "read", "write"]
