"""See every tensor operation of a program, whatever Python code it comes from."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch._compile
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves


class Observer(TorchDispatchMode):
    """A mode of torch whose ``__torch_dispatch__`` is asked to do each operation.

    Attributes:
        records: whether it writes them down, to be repeated.
    """

    records = False
    _hidden = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to hide a mode from its compiler, torch would load that, which takes a second."""
        return False

    def __enter__(self) -> Any:
        kind: Any = type(self)
        if "torch._dynamo" in sys.modules and not kind._hidden:  # a program may have loaded it
            hide: Any = torch._compile._disable_dynamo
            kind.__torch_dispatch__ = hide(kind.__torch_dispatch__)
            kind._hidden = True
        return super().__enter__()  # type: ignore[no-untyped-call]


def recorded() -> bool:
    """Whether what is done now is written down, to be repeated."""
    return any(getattr(mode, "records", False) for mode in _get_current_dispatch_mode_stack())


def memory_of(tensor: Tensor) -> int:
    """The address of a tensor's memory, as long as there is one; views share it."""
    address: int = tensor.untyped_storage()._cdata
    return address


def by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by the names that it declares."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation declares to change in place; lists of them are laid out."""
    if not func._schema.is_mutable:
        return []
    given, declared = by_name(func, args, kwargs), func._schema.arguments
    changed = [a.name for a in declared if a.alias_info and a.alias_info.is_write]
    leaves = [leaf for name in changed for leaf in tree_leaves(given.get(name))]
    return [leaf for leaf in leaves if leaf is not None]
