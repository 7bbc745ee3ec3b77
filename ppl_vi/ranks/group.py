"""The processes that fit together, and what they tell each other.

Each fit has one group of its own for its collectives. A process that fails writes its reason into the
store that all were introduced through, and closes its connections: whoever waits for it, in whatever
collective, wakes up and finds the reason there.
"""

from __future__ import annotations

import atexit
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous

from ppl_vi.errors import RanksError

__all__ = ["ALONE", "Ranks", "joined", "local_device"]

Value = TypeVar("Value")

_REASON = "ppl_vi/failed/{}"
_GRACE = 1.0
_PATIENCE = 2.0
"""Seconds in which whoever left may have told why."""


class Ranks:
    """The processes of a fit, seen from one of them; alone, it is all there is.

    Every method is to be called by all of them, in the same order.

    Args:
        group: of ``torch.distributed``; ``None`` for a process that is alone.

    Attributes:
        rank: the number of this process.
        size: how many there are.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.size = 1 if group is None else torch.distributed.get_world_size(group)

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: it shows progress, warns and writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everyone's tensors of one shape: the same bits for all of them."""
        if self.size == 1:
            return tensor
        total = tensor.detach().contiguous().clone()
        with self._answered():
            torch.distributed.all_reduce(total, group=self._group)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are true of anyone."""
        if self.size == 1:
            return flags
        return tuple((self.sum(torch.tensor(flags, dtype=torch.float32)) > 0).tolist())

    def same(self, tensor: Tensor, source: int = 0) -> Tensor:
        """What one process has there, laid into everyone's tensor."""
        if self.size > 1:
            with self._answered(), torch.no_grad():
                sent = tensor.detach().clone(memory_format=torch.contiguous_format)
                torch.distributed.broadcast(sent, group=self._group, group_src=source)
                tensor.copy_(sent)
        return tensor

    def gathered(self, value: Value) -> list[Value]:
        """Everyone's values, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._answered():
            torch.distributed.all_gather_object(found, value, group=self._group)
        return found

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process leaves, and leave."""
        if self._group is None:
            return
        if not isinstance(error, RanksError):  # that one tells of another's
            told = f"rank {self.rank}: {type(error).__name__}: {error}"
            with suppress(RuntimeError):  # no one may be there to hear it
                _get_default_store().set(self._reason, told)
        group, self._group = self._group, None
        _GROUPS.clear()
        with suppress(RuntimeError, ValueError):
            torch.distributed.destroy_process_group(group)
        del group
        if self.first and not isinstance(error, RanksError):
            time.sleep(_GRACE)  # the store may be with this process: the others read it first

    @property
    def _reason(self) -> str:
        return _REASON.format(self._group.group_name)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Say who left, and why, where no answer comes."""
        try:
            yield
        except RuntimeError as error:
            raise RanksError(self._told(error)) from error

    def _told(self, error: RuntimeError) -> str:
        if reason := self._left():
            return f"another process of this fit failed. {reason}"
        said = str(error).strip().splitlines()[0]
        return (
            f"rank {self.rank} of {self.size} had no answer from another process of this fit: it "
            f"ended, or the network is down (torch says: {said}). Start the job again; with torchrun "
            f"--max-restarts=N that is done at once."
        )

    def _left(self) -> str:
        """Why another one left, if it told."""
        until = time.monotonic() + _PATIENCE
        with suppress(RuntimeError):  # the store may have gone with it
            store = _get_default_store()
            while time.monotonic() < until:
                if store.check([self._reason]):
                    told: str = store.get(self._reason).decode()
                    return told
                time.sleep(0.05)
        return ""


ALONE = Ranks()
_GROUPS: list[tuple[Any, Any]] = []
"""The group for fits, beside the one of all processes that it was made in."""


@contextmanager
def joined(device: torch.device | str | None = None) -> Iterator[Ranks]:
    """All processes that were started together, until the end of a block; else this one alone.

    They are found through ``torch.distributed`` where it is initialised, else through the environment
    that ``torchrun`` sets, whose process group then lasts as long as the process.

    Raises:
        RanksError: another process fails in the block, or ends.
    """
    ranks = _ranks(device)
    try:
        yield ranks
        ranks.any(False)  # no one is done before all are
    except BaseException as error:
        ranks.fail(error)
        raise


def _ranks(device: torch.device | str | None) -> Ranks:
    if not torch.distributed.is_available():
        return ALONE
    if not torch.distributed.is_initialized():
        if "MASTER_ADDR" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) < 2:
            return ALONE
        on_gpu = device is not None and torch.device(device).type == "cuda"
        store, rank, size = next(rendezvous("env://", timeout=_timeout()))
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=_met(store, rank, size),
            rank=rank,
            world_size=size,
        )
        atexit.register(_end)
    if torch.distributed.get_world_size() == 1:
        return ALONE
    everyone = torch.distributed.group.WORLD
    if not _GROUPS or _GROUPS[0][0] is not everyone:
        _GROUPS[:] = [(everyone, torch.distributed.new_group(timeout=_timeout()))]
    return Ranks(_GROUPS[0][1])


def _met(store: Any, rank: int, size: int) -> Any:
    """The store under a name of its own, once all processes are there.

    Processes that torchrun starts again find the addresses of those before them in the store. So the
    first one draws a name, and tells it with what it heard of the others, which each draw a word: none
    takes an old answer for its own.
    """
    own, until = uuid4().hex, time.monotonic() + _timeout().total_seconds()
    others, answer = range(1, size), "ppl_vi/answer"
    if rank:
        store.set(f"ppl_vi/word/{rank}", own)
    while time.monotonic() < until:
        if rank:
            name, *heard = store.get(answer).decode().split() if store.check([answer]) else ("",)
            if own in heard:
                store.set(f"ppl_vi/met/{name}/{rank}", "")
                return PrefixStore(name, store)
        else:
            words = [f"ppl_vi/word/{other}" for other in others]
            heard = [store.get(word).decode() for word in words if store.check([word])]
            store.set(answer, " ".join([own, *heard]))
            if all(store.check([f"ppl_vi/met/{own}/{other}"]) for other in others):
                return PrefixStore(own, store)
        time.sleep(0.02)
    raise RanksError(
        f"rank {rank}: not all of {size} processes came within {_timeout()}. Look whether all of them "
        f"were started, and reach {os.environ['MASTER_ADDR']}."
    )


def _timeout() -> timedelta:
    return timedelta(seconds=float(os.environ.get("PPL_VI_TIMEOUT", 1800)))


def _end() -> None:
    _GROUPS.clear()
    if torch.distributed.is_initialized():
        with suppress(RuntimeError):
            torch.distributed.destroy_process_group()


@contextmanager
def spoken_by_first(ranks: Ranks) -> Iterator[None]:
    """Let the first of several processes alone warn: the others would say the same."""
    with warnings.catch_warnings():
        if not ranks.first:
            warnings.simplefilter("ignore")
        yield


def local_device(device: torch.device | str | None) -> torch.device | str | None:
    """The device of this process: of a machine's GPUs the one of its ``LOCAL_RANK``."""
    several = "cuda" if device is None else str(device)
    if device is None or several != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
