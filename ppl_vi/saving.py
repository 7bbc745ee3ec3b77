"""Fits on disk: ``result.save`` and ``FitResult.load``."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ppl_vi.beginning import new_job
from ppl_vi.checkpoints import State, read, write
from ppl_vi.checkpoints.identity import data_identity, programs_identity, refuse_others
from ppl_vi.checkpoints.programs import programs_state, restore_programs
from ppl_vi.compilation import Execution
from ppl_vi.data.sources import DataSource, data_source
from ppl_vi.errors import CheckpointError
from ppl_vi.estimate import Estimate
from ppl_vi.job import Job
from ppl_vi.objectives import ELBO
from ppl_vi.parameters import FittedParameters
from ppl_vi.preparation import forget
from ppl_vi.randomness import forked_rng
from ppl_vi.stopping.reasons import Convergence, Restart, StopReason
from ppl_vi.sweeping.guides import is_swept
from ppl_vi.sweeping.sweeper import bound_by_batches

if TYPE_CHECKING:
    from ppl_vi.result import FitResult

Path = str | os.PathLike[str]


class Saved(ABC):
    """What can be written to a file, and read again."""

    job: Job
    fitted: FittedParameters
    losses: Tensor
    bound: Estimate
    elbo: Estimate
    estimators: dict[str, str]
    num_steps: int
    seconds: float
    stop_reason: StopReason
    execution: Execution
    remarks: tuple[str, ...]
    convergence: Convergence | None
    restarts: tuple[Restart, ...]
    seed: int | None

    def save(self, path: Path) -> None:
        """Write the fit to a file: parameters, buffers, losses and all that is known of it.

        The file holds numbers and names, no code, under a digest that tells damage; model, guide and
        data are not in it. It is whole or not there: a file of that name stays until the new one is.

        Args:
            path: of the file; ``.ckpt`` is usual.

        Raises:
            OSError: the disk is full or may not be written.

        Example:
            >>> import tempfile, torch, pyro, pyro.distributions as dist
            >>> from ppl_vi import FitResult, fit
            >>> def model(x):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            >>> result = fit(model, "normal", torch.ones(50), steps=200, seed=0, progress=False)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result.save(f"{folder}/mean.ckpt")
            ...     again = FitResult.load(f"{folder}/mean.ckpt", model, "normal", torch.ones(50))
            >>> bool(again.elbo == result.elbo), again.num_steps
            (True, 200)
        """
        with self.fitted.applied():
            write(path, self._state())

    @classmethod
    def load(
        cls,
        path: Path,
        model: Callable[..., Any],
        guide: Any = "normal",
        data: Any = None,
        *,
        objective: pyro.infer.ELBO | None = None,
        data_plate: str | None = None,
        device: torch.device | str | None = None,
    ) -> FitResult:
        """Read a fit that ``save`` wrote; no step is taken.

        Args:
            path: of the file.
            model: the same model.
            guide: the same guide, as ``fit`` was given it.
            data: the same data.
            objective: likewise, where it was not the default.
            data_plate: likewise.
            device: where the data are put.

        Returns:
            The fit, which answers all that the saved one did; ``states`` is empty.

        Raises:
            CheckpointError: the file is damaged, none of ours, newer than this code, or of another
                model, guide or data set; the message names what differs.
        """
        state, name = read(path), repr(os.fspath(path))
        if not isinstance(state, dict) or state.get("kind") != "result":
            raise CheckpointError(f"{name} holds no fit. Name a file that result.save() wrote.")
        source = data_source(data, state["batch_size"], device)
        return fit_of(state, name, model, guide, source, data_plate, objective or ELBO())

    def _state(self) -> State:
        """All of it; inside the fitted parameters."""
        told = self.convergence
        return {
            "kind": "result",
            "ppl_vi": version("ppl-vi"),
            "data": data_identity(self.job.source),
            "identity": programs_identity(self.job),
            "batch_size": self.job.source.batch_size,
            "programs": programs_state(self.job),
            "losses": self.losses,
            "bound": [float(self.bound), self.bound.standard_error],
            "elbo": [float(self.elbo), self.elbo.standard_error],
            "convergence": told and {**asdict(told), "verdict": told.verdict.name},
            "stop_reason": self.stop_reason.name,
            "execution": asdict(self.execution),
            "estimators": self.estimators,
            "remarks": self.remarks,
            "restarts": restarts_state(self.restarts),
            "seconds": self.seconds,
            "seed": self.seed,
        }


def state_of(result: Saved) -> State:
    """All of a fit, as ``save`` writes it, in tensors of its own."""
    with result.fitted.applied():
        return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), result._state())


def restarts_state(restarts: Sequence[Restart]) -> State:
    """What became of restarts, for a file."""
    return [
        [float(one.bound), one.bound.standard_error, one.num_steps, one.stop_reason.name]
        for one in restarts
    ]


def restarts_of(state: State) -> list[Restart]:
    """From what ``restarts_state`` gave."""
    return [
        Restart(Estimate(value, error), steps, StopReason[reason])
        for value, error, steps, reason in state
    ]


def fit_of(
    state: State,
    name: str,
    model: Callable[..., Any],
    guide: Any,
    source: DataSource,
    data_plate: str | None,
    objective: pyro.infer.ELBO,
) -> FitResult:
    """The fit that ``state_of`` told of.

    Args:
        state: of the fit.
        name: of its file, for errors.
        model: the same model.
        guide: as ``fit`` was given it.
        source: the same data.
        data_plate: as ``fit`` was given it.
        objective: likewise.

    Raises:
        CheckpointError: the model, the guide or the data are others; the message names what differs.
    """
    refuse_others(name, state["data"], data_identity(source))
    with pyro.get_param_store().scope(), forked_rng():
        job, begin = new_job(model, guide, source, data_plate, known=state["programs"]["values"])
        begin(False)
        refuse_others(name, state["identity"], programs_identity(job))
        restore_programs(job, state["programs"], name)
        if is_swept(job.guide):
            job.guide.settle()
            if job.data_plates:
                bound_by_batches(job.guide, job)  # which counts the elements of components
        forget(job.usual_pair())  # it may have become another distribution
        fitted = FittedParameters.capture((job.model, job.guide))
    return _result(state, job, fitted, objective)


def _result(
    state: State, job: Job, fitted: FittedParameters, objective: pyro.infer.ELBO
) -> FitResult:
    from ppl_vi.result import FitResult  # which is saved by what stands here

    told = state["convergence"]
    return FitResult(
        losses=state["losses"],
        bound=Estimate(*state["bound"]),
        elbo=Estimate(*state["elbo"]),
        estimators=state["estimators"],
        num_steps=len(state["losses"]),
        seconds=state["seconds"],
        stop_reason=StopReason[state["stop_reason"]],
        job=job,
        start=fitted,
        fitted=fitted,
        execution=Execution(**state["execution"]),
        remarks=state["remarks"],
        objective=objective,
        seed=state["seed"],
        restarts=tuple(restarts_of(state["restarts"])),
        convergence=told and Convergence(**{**told, "verdict": StopReason[told["verdict"]]}),
    )
