"""Small problems on one thread: handing their tensors to several costs more than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_vi.parameters import trainable
from ppl_vi.program import Structure

_SMALL = 50_000


@contextmanager
def threads_for(structure: Structure) -> Iterator[None]:
    """Run a block on one thread where a draw of the program and its parameters are small.

    On a busy machine threads that wait for each other slow tiny operations down a hundredfold. The
    number of threads is restored after the block.

    Args:
        structure: of the programs that run in the block.
    """
    elements = sum(site.shape.numel() for site in structure.sites.values())
    parameters = sum(parameter.numel() for parameter in trainable().values())
    before = torch.get_num_threads()
    try:
        if elements + parameters < _SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
