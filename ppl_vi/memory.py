"""What is found out about a model and a guide, kept as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

from ppl_vi.program import Pair

_Known = dict[tuple[Any, ...], Any]
_KNOWN: dict[tuple[int, int], dict[Hashable, _Known]] = {}
_KEPT: list[Any] = []


def known_about(pair: Pair) -> _Known:
    """What is known of a pair; forgotten together with its model or its guide."""
    owners = [getattr(program, "__self__", program) for program in (pair.model, pair.guide)]
    identity = (id(owners[0]), id(owners[1]))
    if identity not in _KNOWN:
        _KNOWN[identity] = {}
        for owner in owners:
            try:
                weakref.finalize(owner, _KNOWN.pop, identity, None)
            except TypeError:  # cannot be watched (slots, tuples): no other may get its identity
                _KEPT.append(owner)
    methods = tuple(getattr(p, "__func__", None) for p in (pair.model, pair.guide))
    return _KNOWN[identity].setdefault(methods, {})
