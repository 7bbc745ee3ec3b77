"""The same fit over and over, each time to another data set from the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList
from torch import Tensor

from ppl_vi.data.sources import DataSource, data_source
from ppl_vi.diagnostics.simulating import Simulated, Simulator
from ppl_vi.errors import GuideError
from ppl_vi.job import Job, data_plates_of
from ppl_vi.parameters import FittedParameters, trainable
from ppl_vi.partial import is_partial
from ppl_vi.preparation import structure_of
from ppl_vi.program import draw_latents, squeezed
from ppl_vi.questions.conditioning import same_family
from ppl_vi.questions.holding import frozen
from ppl_vi.starting import is_named
from ppl_vi.sweeping.guides import is_swept


class Refits:
    """Fits of one family of guides to data sets from a model's prior; in the end all is put back.

    Args:
        model: the Pyro model, its parameters in the current scope.
        guide: as ``fit`` takes it.
        source: the data that simulated ones are like.
        options: of ``fit``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        source: DataSource,
        options: Mapping[str, Any],
    ) -> None:
        self._model, self._guide = model, guide
        self._options = {"progress": False, **options}
        self._source = source
        self._built = is_named(guide) or is_swept(guide) or _is_auto(guide)
        self._simulator = Simulator(model, source, reading=not self._built)
        self._fixed: bool | None = None
        self._begun = FittedParameters({}, (), ()).including(_tensors(guide))

    def __enter__(self) -> Refits:
        return self

    def __exit__(self, *error: Any) -> None:
        self._begun.restore()

    def ranks(self, num_draws: int) -> dict[str, Tensor]:
        """``[*plates, *event]`` by continuous latent: the share of a fitted guide below the truth.

        Args:
            num_draws: of the fitted guide.
        """
        simulated = self._simulator.draw()
        with frozen(self._simulator.modules), self._fitted(simulated) as job, torch.no_grad():
            pair = job.pair(job.source.whole())
            structure = structure_of(pair)
            drawn = draw_latents(structure, pair, num_draws)
            names = [
                name
                for name in structure.of_kind("latent")
                if name in simulated.latents and drawn[name].is_floating_point()
            ]
            draws = {n: squeezed(structure, n, drawn[n]) for n in names}
            truth = {
                n: squeezed(structure, n, simulated.latents[n].expand(drawn[n].shape[1:])[None])
                for n in names
            }
        relabel = getattr(self._model, "relabel", None)
        if relabel is not None and structure.of_kind("latent") == tuple(names):
            draws, truth = relabel(draws), relabel(truth)
        return {name: _rank(truth[name][0], draws[name]) for name in names}

    @contextmanager
    def _fitted(self, simulated: Simulated) -> Iterator[Job]:
        """The model and the guide of one data set, inside the parameters fitted to it."""
        from ppl_vi.fitting import fit  # the result of a fit asks this

        source = data_source(simulated.data, self._batch_size)
        guide = self._guide_for(simulated.model)
        if self._fixed is None:
            self._fixed = self._is_fixed(simulated, source)
        if self._fixed:
            with pyro.get_param_store().scope():
                yield self._job(simulated, source)
            return
        self._begun.restore()
        result = fit(simulated.model, guide, source, **{"shard": None, **self._options})
        with result.fitted.applied():
            yield result.job

    @property
    def _batch_size(self) -> int | None:
        return next(self._source.sequence()).size if self._source.batched else None

    def _guide_for(self, model: Callable[..., Any]) -> Any:
        if is_swept(self._guide):
            return "cavi"
        if _is_auto(self._guide):
            again = same_family(self._guide, model)
            if again is None:
                raise GuideError(
                    f"calibrate: a {type(self._guide).__name__} cannot be built for another data set. "
                    f"Pass its class or its name."
                )
            return again
        return self._guide

    def _job(self, simulated: Simulated, source: DataSource) -> Job:
        plates = data_plates_of(simulated.model, source, self._options.get("data_plate"))
        return Job(simulated.model, self._guide, source, plates)

    def _is_fixed(self, simulated: Simulated, source: DataSource) -> bool:
        """Whether the guide has nothing to be fitted."""
        if self._built or is_partial(self._guide):
            return False
        with pyro.get_param_store().scope():
            self._job(simulated, source).check()
            return trainable().keys() <= self._simulator.held


def _tensors(guide: Any) -> list[Tensor]:
    """The parameters and buffers of the modules that a guide is, or is made of."""
    owner = getattr(guide, "__self__", guide)
    if isinstance(owner, torch.nn.Module):
        return [*owner.parameters(), *owner.buffers()]
    parts = [*vars(owner).values()] if is_partial(owner) else []
    return [tensor for part in parts for tensor in _tensors(part)]


def _is_auto(guide: Any) -> bool:
    return isinstance(guide, AutoGuide) and not isinstance(guide, AutoGuideList | AutoDelta)


def _rank(truth: Tensor, draws: Tensor) -> Tensor:
    """``[*shape]`` in float64: uniform where the truth is another draw; ties are broken at random."""
    below, equal = (draws < truth).sum(0).double(), (draws == truth).sum(0).double()
    return ((below + torch.rand(truth.shape).to(below) * (equal + 1)) / (len(draws) + 1)).cpu()
