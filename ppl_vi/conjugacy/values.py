"""Tensors that stand for latents: what a program computes with them is written down as moments.

A program runs once on such tensors. Each carries a draw, so that shapes and Python code work as usual,
and a law, which knows the moments that expected log-densities ask for. An operation that leaves the
algebra is no error by itself: its result carries the reason, and whoever needs its moments tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ppl_vi.errors import ModelError


class NotConjugateError(ModelError):
    """An operation or a site has no place in the algebra of moments."""


class Law:
    """What is known of a random tensor."""


class Unknown(Law):
    """The law of a tensor whose moments cannot be had.

    Attributes:
        reason: the operation that lost them.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Uncertain(Tensor):
    """A latent, or what was computed from latents: a draw, with its law.

    Attributes:
        law: what is known of it.
        sites: the latents that it was computed from; where its moments are lost, those of the
            operation that lost them.
    """

    law: Law
    sites: frozenset[str]

    @staticmethod
    def of(draw: Tensor, law: Law, sites: frozenset[str] = frozenset()) -> Uncertain:
        """A draw of this law, computed from these latents."""
        made: Uncertain = Tensor._make_subclass(Uncertain, draw.detach())
        made.law, made.sites = law, sites
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = _name_of(func)
        if name in _REFUSED:
            raise NotConjugateError(f"the program uses the value of a latent ('{name}')")
        kwargs = dict(kwargs or {})
        if name in _COMPOSED:
            return _COMPOSED[name](*args, **kwargs)
        operation = Operation(func, tuple(args), kwargs)
        if name in _NEW or (name in _LIKE and not isinstance(args[0], Uncertain)):
            return operation.on_draws()
        with torch._C.DisableTorchFunctionSubclass():
            found = operation.on_draws()
            if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(found)):
                return found  # a shape, a type, a device
            return _marked(found, _law(name, operation), operation.sites)


class Operation:
    """An operation that was called with uncertain tensors.

    Attributes:
        function: torch's.
        args: as it was called.
        kwargs: likewise.
        uncertain: the uncertain tensors among its arguments, in order.
    """

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self._leaves, self._layout = tree_flatten((args, kwargs))
        self.uncertain = [leaf for leaf in self._leaves if isinstance(leaf, Uncertain)]

    @property
    def laws(self) -> list[Law]:
        """Of the uncertain tensors."""
        return [value.law for value in self.uncertain]

    @property
    def sites(self) -> frozenset[str]:
        """The latents that its arguments come from, or that lost the moments of one of them."""
        return sites_of(self.uncertain)

    def on(self, *tensors: Tensor) -> Any:
        """The operation with other tensors in place of the uncertain ones."""
        own = iter(tensors)
        leaves = [next(own) if isinstance(leaf, Uncertain) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._layout)
        return self.function(*args, **kwargs)

    def on_draws(self) -> Any:
        """The operation on the draws of the uncertain tensors."""
        return self.on(*map(plain, self.uncertain))

    @property
    def shape(self) -> torch.Size:
        """Of its result."""
        found: Tensor = self.on_draws()
        return found.shape


_NEW = frozenset(
    (
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    )
)
_LIKE = frozenset(("type_as", "expand_as", "view_as", "reshape_as", "to"))
"""Operations that look at the shape or the type of another tensor alone."""

_CHECKED: ContextVar[bool] = ContextVar("checked", default=False)


@contextmanager
def checked() -> Iterator[None]:
    """Within it, what rules take for granted is looked up in the draws."""
    token = _CHECKED.set(True)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def holds(condition: Callable[[], Tensor]) -> bool:
    """Whether a condition on draws holds; taken for granted where it was checked before."""
    return not _CHECKED.get() or bool(condition().all())


SPREADS = ("expand", "expand_as", "broadcast_to")
"""Operations that repeat entries along dimensions."""

MOVES = (
    *("view", "view_as", "reshape", "reshape_as", "unsqueeze", "squeeze"),
    *("T", "t", "mT", "permute", "transpose", "movedim", "swapaxes", "flatten", "unflatten"),
    *("ravel", "getitem", "index_select", "gather", "take_along_dim", "narrow", "select", "flip"),
    *("roll", "contiguous", "clone", "detach", "to", "float", "double", "type_as", "repeat"),
    "tile",
)
"""Operations that move entries about, or leave them where they are."""

Rule = Callable[[Operation], Law | list[Law | None] | None]
"""The law of an operation's result, or those of several; None where the rule does not apply."""

_RULES: dict[str, list[Rule]] = {}
_REFUSED = frozenset(
    ("bool", "item", "float", "int", "index", "tolist", "numpy", "setitem", "contains", "array")
)


def _broadcast(*tensors: Any) -> tuple[Any, ...]:
    every = tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors
    shape = broadcast_shape(*(tensor.shape for tensor in every))
    return tuple(tensor.expand(shape) for tensor in every)


_COMPOSED: dict[str, Callable[..., Any]] = {"broadcast_tensors": _broadcast}
"""Operations as others, each of which has a rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for the operations of these names."""

    def enter(one: Rule) -> Rule:
        for name in names:
            _RULES.setdefault(name, []).append(one)
        return one

    return enter


def plain(value: Any) -> Any:
    """The draw of an uncertain tensor; anything else as it is."""
    return value.as_subclass(Tensor) if isinstance(value, Uncertain) else value


def uncertain_in(values: Any) -> Iterator[Uncertain]:
    """The uncertain tensors among arguments."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Uncertain))


def sites_of(values: Any) -> frozenset[str]:
    """The latents that values were computed from, or those that lost the moments of some of them."""
    uncertain = list(uncertain_in(values))
    lost = [value for value in uncertain if isinstance(value.law, Unknown)]
    return frozenset().union(*(value.sites for value in lost or uncertain))


def _name_of(func: Any) -> str:
    """One name for ``torch.add``, ``Tensor.add`` and ``+``."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":  # a property
        return str(getattr(func.__self__, "__name__", ""))
    return name.strip("_") if name.startswith("__") else name


def _law(name: str, operation: Operation) -> Any:
    lost = [law for law in operation.laws if isinstance(law, Unknown)]
    if lost:
        return lost[0]
    for one in _RULES.get(name, ()):
        law = one(operation)
        if law is not None:
            return law
    return Unknown(f"'{name}'")


def _marked(found: Any, law: Any, sites: frozenset[str]) -> Any:
    if isinstance(found, Tensor):
        return Uncertain.of(found, law, sites)
    laws = law if isinstance(law, list) else [law] * len(found)
    marked = (
        f if one is None else Uncertain.of(f, one, sites)
        for f, one in zip(found, laws, strict=True)
    )
    return type(found)(marked)
