"""Gradients drawn one by one at the parameters as they are, and everything left as it was."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from ppl_vi.data.sources import Batch, DataSource, data_source
from ppl_vi.errors import GuideError
from ppl_vi.estimators import Enumerate
from ppl_vi.job import Job, data_plates_of
from ppl_vi.objectives import Objective
from ppl_vi.parameters import FittedParameters, trainable
from ppl_vi.program import StartingValues, Structure
from ppl_vi.randomness import forked_rng
from ppl_vi.running import estimators_of, loss_and_grads_of
from ppl_vi.starting import initial_values, resolve_guide
from ppl_vi.threads import threads_for

Program = Callable[..., Any]


class Draw(NamedTuple):
    """One gradient of the bound, ``[components]`` in float64, the bound, and the time it took."""

    gradient: Tensor
    bound: float
    seconds: float


@dataclass(frozen=True)
class Bench:
    """A pair at its current parameters, on one batch.

    Attributes:
        job: the pair and its data.
        batch: the first one.
        structure: of the pair.
        parameters: unconstrained, by name; a gradient is laid out in their order.
    """

    job: Job
    batch: Batch
    structure: Structure
    parameters: Mapping[str, Tensor]

    @property
    def slices(self) -> dict[str, slice]:
        """Where each parameter's components lie in a gradient."""
        made, start = {}, 0
        for name, parameter in self.parameters.items():
            made[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return made

    @property
    def precision(self) -> Tensor:
        """``[components]``: the relative distance of neighbouring numbers of each one's dtype."""
        of_each = [
            torch.full((p.numel(),), torch.finfo(p.dtype).eps, dtype=torch.float64)
            for p in self.parameters.values()
        ]
        return torch.cat(of_each)

    def check(self, objective: Objective) -> None:
        """Raise a GuideError where the objective's estimators refuse a site or the program."""
        estimators_of(objective, self.job)

    def draw(self, name: str, objective: Objective) -> Draw:
        """One gradient; its name is for the error.

        Raises:
            FloatingPointError: the bound or a gradient is not finite.
        """
        loss_and_grads = loss_and_grads_of(objective, self.job.model, self.job)
        for parameter in self.parameters.values():
            parameter.grad = None
        begun = _now()
        loss = loss_and_grads(self.batch)
        seconds = _now() - begun
        parts = []
        for parameter_name, parameter in self.parameters.items():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if not torch.isfinite(grad).all():
                raise FloatingPointError(
                    f"estimator '{name}': the gradient of parameter '{parameter_name}' is not finite. "
                    f"Start nearer to the data, or use another estimator."
                )
            parts.append(-grad.reshape(-1).double().cpu())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"estimator '{name}': the bound is {-loss}. Start nearer to the data."
            )
        return Draw(torch.cat(parts), -loss, seconds)

    def exact(self, objective: Objective) -> Tensor | None:
        """``[components]``: the expected gradient, where all that is random can be enumerated."""
        plates = self.structure.plates.values()
        if any(p.size < p.full_size and p.name not in self.job.data_plates for p in plates):
            return None  # the program draws its rows by itself
        try:
            enumerated = with_estimators(objective, Enumerate())
            self.check(enumerated)
        except (GuideError, ValueError):
            return None
        first, second = (self.draw("Enumerate()", enumerated) for _ in range(2))
        # A program with noise of its own, dropout for one, is not exact for all that.
        alike = torch.allclose(first.gradient, second.gradient, rtol=1e-4, atol=1e-6)
        return first.gradient if alike else None


@contextmanager
def bench(
    model: Program,
    guide: str | type[AutoGuide] | Program,
    data: Any,
    batch_size: int | None,
    data_plate: str | None,
    seed: int | None,
    device: torch.device | str | None,
) -> Iterator[Bench]:
    """A bench for the block; parameters, their ``grad``, buffers and random state are then put back.

    Raises:
        GuideError, ModelError, DataError: the programs or the data do not fit.
    """
    source = data_source(data, batch_size, device)
    found = FittedParameters.capture((model, guide))
    with nullcontext() if seed is None else forked_rng(seed=seed):
        try:
            with pyro.get_param_store().scope() as start:
                job, structure = _prepared(model, guide, source, data_plate)
            pair = job.usual_pair()
            with pyro.get_param_store().scope(_current(start, job)), threads_for(structure, pair):
                used = {n: p for n, p in trainable().items() if n in start["params"]}
                if not used:
                    raise GuideError(
                        "neither the guide nor the model has a trainable parameter, so there is no "
                        "gradient. Declare one with pyro.param, pyro.module or a PyroModule."
                    )
                with _grads_kept(used):
                    yield Bench(job, next(source.sequence()), structure, used)
        finally:
            found.restore()


def with_estimators(objective: Objective, spec: Any) -> Objective:
    """The objective with other estimators; a whole objective is taken as it is, without its past.

    Raises:
        TypeError: the objective is none of ppl_vi's.
        ValueError: its estimators cannot be changed.
    """
    if isinstance(spec, Objective):
        return copy.copy(spec)
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: pass a ppl_vi objective such as ELBO(), not {objective!r}.")
    try:
        return dataclasses.replace(objective, estimators=spec)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"objective: the estimators of {type(objective).__name__} cannot be replaced. Pass ELBO() "
            f"or another objective that takes estimators=, or whole objectives to be compared."
        ) from error


def _prepared(
    model: Program, guide: Any, source: DataSource, data_plate: str | None
) -> tuple[Job, Structure]:
    """The pair with every parameter at its start, as a fit makes it."""
    with pyro.get_param_store().scope():  # a look at the model creates no parameter
        plates = data_plates_of(model, source, data_plate)
    values = initial_values(model, source)
    with StartingValues(values):
        made = resolve_guide(guide, model, source, plates, values, 0)
        job = Job(model, made, source, plates)
        return job, job.check()


def _current(start: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The parameters of the surrounding scope, and where it has none the start.

    A module's parameters are its own tensors, whatever another module left under their names.
    """
    owners = [getattr(program, "__self__", program) for program in (job.model, job.guide)]
    own = {id(p) for owner in owners if isinstance(owner, nn.Module) for p in owner.parameters()}
    kept = {name for name, parameter in start["params"].items() if id(parameter) in own}
    around = pyro.get_param_store().get_state()
    return {
        kind: {**start[kind], **{n: v for n, v in around[kind].items() if n not in kept}}
        for kind in ("params", "constraints")
    }


@contextmanager
def _grads_kept(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    before = {name: parameter.grad for name, parameter in parameters.items()}
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.grad = before[name]


def _now() -> float:
    """Seconds, when the accelerator has done what it was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
