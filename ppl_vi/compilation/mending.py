"""Faults of torch's compiler, mended while it works."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def mended() -> Iterator[None]:
    """Within it, the compiler has none of these faults."""
    with right_scatters(), shared_tables():
        yield


@contextmanager
def right_scatters() -> Iterator[None]:
    """Within it, sums into rows land where they belong.

    Where a loop runs over tiles on several threads, torch 2.13 adds the number within the tile twice to
    the place of a sum, which is then outside the tensor (pytorch issue 191837).
    """
    try:
        from torch._inductor.codegen.cpp import CppTile2DKernel, CppVecKernel

        store: Any = CppTile2DKernel.store
    except (ImportError, AttributeError):
        yield
        return

    def store_once(kernel: Any, name: str, index: Any, value: Any, mode: Any = None) -> None:
        in_place = kernel.rename_indexing(index)
        if mode != "atomic_add" or kernel.num_threads == 1 or kernel.need_vec_transpose(in_place):
            store(kernel, name, index, value, mode)
        else:
            CppVecKernel.store(kernel, name, index, value, mode)

    with patch.object(CppTile2DKernel, "store", store_once):
        yield


@contextmanager
def shared_tables() -> Iterator[None]:
    """Within it, a table that many entries are taken from is computed once.

    Left alone, torch's compiler computes an entry of the table (a digamma, say) again wherever one is
    taken, which made sweeps over words and topics twice as slow as the same operations one by one.
    """
    try:
        from torch._inductor.lowering import lowerings
    except ImportError:
        yield
        return

    def taking(lower: Any) -> Any:
        def from_table(table: Any, *args: Any, **kwargs: Any) -> Any:
            taken = lower(table, *args, **kwargs)
            if _entries(taken) <= _entries(table):
                return taken
            table.realize()
            return lower(table, *args, **kwargs)

        return from_table

    aten = torch.ops.aten
    takes = (
        aten.index.Tensor,
        aten.embedding.default,
        aten.index_select.default,
        aten.gather.default,
    )
    with patch.dict(lowerings, {op: taking(lowerings[op]) for op in takes if op in lowerings}):
        yield


def _entries(value: Any) -> int:
    return math.prod(int(size) for size in value.get_size())
