"""A fault of torch's compiler, mended while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


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

    def mended(kernel: Any, name: str, index: Any, value: Any, mode: Any = None) -> None:
        in_place = kernel.rename_indexing(index)
        if mode != "atomic_add" or kernel.num_threads == 1 or kernel.need_vec_transpose(in_place):
            store(kernel, name, index, value, mode)
        else:
            CppVecKernel.store(kernel, name, index, value, mode)

    with patch.object(CppTile2DKernel, "store", mended):
        yield
