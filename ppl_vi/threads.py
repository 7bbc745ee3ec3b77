"""Small problems on one thread: handing their tensors to several costs more than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vi.parameters import trainable
from ppl_vi.program import Pair, Structure

_SMALL = 50_000
_READS = 4
"""An element that is only read costs a part of one that is computed."""


@contextmanager
def threads_for(structure: Structure, pair: Pair) -> Iterator[None]:
    """Run a block on one thread where a draw of the program, its parameters and its data are small.

    On a busy machine threads that wait for each other slow tiny operations down a hundredfold. The
    number of threads is restored after the block.

    Args:
        structure: of the programs that run in the block.
        pair: these programs, with their arguments.
    """
    elements = sum(site.shape.numel() for site in structure.sites.values())
    parameters = sum(parameter.numel() for parameter in trainable().values())
    data = sum(t.numel() for t in tree_leaves((pair.args, pair.kwargs)) if isinstance(t, Tensor))
    before = torch.get_num_threads()
    try:
        if elements + parameters + data // _READS < _SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
