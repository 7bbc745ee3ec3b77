"""Ctrl-C, and what asks a process to end, between two steps, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_USUAL: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Run a block in which the first Ctrl-C or SIGTERM only makes a note; the next does as usual.

    Gives a function that says whether there was one. Where someone else handles a signal, or outside
    the main thread, nothing is changed, and the signal does what it did.
    """
    noted = False

    def note(number: int, frame: Any) -> None:
        nonlocal noted
        noted = True
        signal.signal(number, _USUAL[number])

    main = threading.current_thread() is threading.main_thread()
    ours = [n for n, usual in _USUAL.items() if main and signal.getsignal(n) is usual]
    for number in ours:
        signal.signal(number, note)
    try:
        yield lambda: noted
    finally:
        for number in ours:
            signal.signal(number, _USUAL[number])
