"""What may be asked of a fit."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, get_args

import pyro.infer

from ppl_vi.counts import check_count
from ppl_vi.ranks.group import Ranks
from ppl_vi.ranks.shards import Shard
from ppl_vi.stepping.runners import OnNan


def check_options(
    objective: Any, steps: Any, restarts: Any, on_nan: Any, compile: Any, tol: Any, shard: Any
) -> None:
    """Raise TypeError or ValueError for an option that means nothing."""
    if not isinstance(objective, pyro.infer.ELBO):
        made = f" Make one first: {objective.__name__}()." if isinstance(objective, type) else ""
        raise TypeError(
            f"objective: pass a ppl_vi objective or a pyro.infer.ELBO, not {objective!r}.{made}"
        )
    for name, value in (("steps", steps), ("restarts", restarts)):
        check_count(name, value)
    if shard is not None and shard not in get_args(Shard):
        raise ValueError(f"shard must be 'split', 'given' or None, not {shard!r}.")
    if on_nan not in get_args(OnNan):
        raise ValueError(f"on_nan must be 'raise', 'skip' or 'rollback', not {on_nan!r}.")
    number = isinstance(tol, (int, float)) and not isinstance(tol, bool)
    if not (tol in ("auto", None) or (number and 0 < tol < math.inf)):
        raise ValueError(f"tol must be 'auto', None or a number of nats above 0, not {tol!r}.")
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f"compile must be 'auto', True or False, not {compile!r}.")


def check_alike(ranks: Ranks, **options: Any) -> None:
    """Raise a ValueError where processes were told to fit otherwise than others."""
    everyone = ranks.gathered({name: repr(value) for name, value in options.items()})
    for rank, others in enumerate(everyone):
        for name, value in everyone[0].items():
            if others[name] != value:
                raise ValueError(
                    f"{name}: rank 0 was given {value}, and rank {rank} {others[name]}. Give all "
                    f"processes of a fit the same."
                )


def check_callbacks(callbacks: Any) -> None:
    """Raise TypeError unless they are a list of functions."""
    listed = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
    if not listed or not all(map(callable, callbacks)):
        one = ", callbacks=[function]" if callable(callbacks) else ""
        raise TypeError(f"callbacks: pass a list of functions{one}, not {callbacks!r}.")


def check_checkpoint(checkpoint: Any, every: Any, resume: Any) -> None:
    """Raise TypeError or ValueError for options of checkpoints that mean nothing."""
    if not (checkpoint is None or isinstance(checkpoint, (str, os.PathLike))):
        raise TypeError(f"checkpoint must be the path of a file, not {checkpoint!r}.")
    check_count("checkpoint_every", every)
    if not isinstance(resume, bool):
        raise ValueError(f"resume must be True or False, not {resume!r}.")
    if resume and checkpoint is None:
        raise ValueError(
            "resume=True needs the file to go on from. Pass checkpoint='run.ckpt' too."
        )
