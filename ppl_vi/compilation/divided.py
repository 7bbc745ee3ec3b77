"""Products of matrices, divided among the threads of a compiled step.

The cores of a machine need not share a cache. Where each product is divided by itself, as libraries
do, half of a weight matrix moves from one core to the other between a product, its gradient and its
update. Here a thread takes the rows of the largest of the three matrices, in all of them. What a thread
multiplies by is torch's own product for one thread, made for the processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ppl_vi.compilation.products import is_large, with_products_by

_LEAST_WORK = 400_000
"""Multiplications; a smaller product takes little longer than threads need to meet."""
_LEAST_SIDE = 16
_SOURCE = Path(__file__).with_name("divided_products.h")
_NAME = "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb"
"""Of torch's product for one thread, as its library knows it."""
_LIBRARY = torch.library.Library("ppl_vi", "FRAGMENT")
_LIBRARY.define("divided_product(Tensor a, Tensor b) -> Tensor")
_LIBRARY.impl("divided_product", torch.mm, "CPU")
_LIBRARY.impl("divided_product", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")


def with_divided_products(graph: GraphModule) -> GraphModule:
    """A graph, to be compiled, whose products are divided by the rows of their largest matrix.

    Args:
        graph: with the shapes of its operations; it stays as it is.
    """
    if not has_products():
        return graph
    operation = torch.ops.ppl_vi.divided_product.default
    return with_products_by(operation, graph, _is_divided)


def _is_divided(factors: Sequence[Any]) -> bool:
    """Whether dividing a product is worth it: of large matrices, or of one row and a large matrix."""
    least_side = 1 if _adds_rows(factors) else _LEAST_SIDE
    return is_large(factors, _LEAST_WORK, least_side) and all(map(_lies_apart, factors))


def _adds_rows(factors: Sequence[Any]) -> bool:
    """Whether rows that lie one after the other are added up, each times a number."""
    a, b = (factor.meta["val"] for factor in factors)
    matrix, along = (b, 1) if int(a.shape[0]) == 1 else (a, 0)
    width, rows = int(matrix.shape[along]), int(matrix.shape[1 - along])
    is_vector = 1 in (int(a.shape[0]), int(b.shape[1]))
    return is_vector and matrix.strides[along] == 1 and min(width, rows) >= _LEAST_SIDE


def _lies_apart(factor: Any) -> bool:
    """Whether rows or columns that lie one after the other share no memory, as expanded ones do."""
    value = factor.meta["val"]
    (rows, columns), (down, right) = value.shape, value.strides
    if right == 1 and rows > 1:
        return bool(down >= columns)
    return bool(right >= rows) if down == 1 and columns > 1 else True


@cache
def has_products() -> bool:
    """Whether torch has products of one thread for this processor."""
    if not torch.backends.mkldnn.enabled or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return False
    return hasattr(library, _NAME)


def teach_compiler() -> None:
    """Tell the inductor which C++ function a divided product is."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering

    operation = torch.ops.ppl_vi.divided_product.default
    if operation in lowerings:
        return

    class Divided(ir.ExternKernelOut):
        def codegen(self, wrapper: Any) -> None:
            wrapper.include_extra_header(str(_SOURCE))
            super().codegen(wrapper)

    @register_lowering(operation, type_promotion_kind=None)
    def divided(*factors: Any) -> Any:
        outside: Any = ir.ExternKernel
        a, b = (outside.require_stride1(outside.realize_input(factor)) for factor in factors)
        size = [a.get_size()[0], b.get_size()[1]]
        found = Divided(
            layout=ir.FixedLayout(a.get_device(), a.get_dtype(), size),
            inputs=[a, b],
            python_kernel_name="torch.ops.ppl_vi.divided_product",
            cpp_kernel_name="aoti_torch_cpu_divided_product_out",
            op_overload=operation,
        )
        return ir.TensorBox.create(found)
