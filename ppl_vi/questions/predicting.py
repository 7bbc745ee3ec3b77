"""New rows under a fitted posterior: draws of what rows share, and proposals for latents of rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_vi.data.sources import Batch, data_source
from ppl_vi.errors import DataError, ModelError
from ppl_vi.evaluation import WeightedPair
from ppl_vi.job import Job
from ppl_vi.preparation import structure_of
from ppl_vi.program import (
    DataPlate,
    Pair,
    Structure,
    draw_latents,
    draw_plainly,
    enumerable_sites,
    hide,
    inspect_model,
    plate_dims,
    run_guide,
)
from ppl_vi.questions.weighing import Weighing, elements
from ppl_vi.randomness import forked_rng
from ppl_vi.starts import fit_normals
from ppl_vi.sweeping.guides import marginalized

Draws = dict[str, Tensor]
Program = Callable[..., Any]
_DRAWS_FOR_A_CENTER = 100
_DRAWS_TO_FIT = 64
_ELEMENTS_TO_FIT, _MOST_TO_FIT = 1_000_000, 1_000


def weighing_of_new(job: Job, data: Any) -> tuple[Weighing, str]:
    """How new data are weighed, and what that estimates; inside the fitted parameters.

    Without latents outside of the rows it is log p(x*). With some it is log p(x* | x), where draws of
    the guide stand for the posterior. Latents of new rows are proposed by the guide where it reads them
    off the data, else by Normals fitted to the new rows.

    Raises:
        DataError: the model takes no data.
    """
    if job.source.num_rows is None:
        raise DataError(
            "log_evidence: data: the model was fitted without rows of data, so that it takes no new "
            "ones. Make the data an argument of the model, and fit it with them."
        )
    posterior = SharedPosterior(marginalized(job))
    source = data_source(data, posterior.batch_size)
    head = source.head(1_000)
    _check_observed(posterior, head)
    new, whole = NewRows(posterior, head), posterior.batch_size is None

    def pairs() -> Iterator[WeightedPair]:
        """All batches in order; the share of each is not told."""
        for number, batch in enumerate([source.whole()] if whole else source.sequence()):
            yield new.pair(number, batch), 1.0, new.handler(batch)

    given = posterior.draw if posterior.shared else None
    return Weighing(pairs, posterior.rows, given), "log p(x* | x)" if given else "log p(x*)"


def _check_observed(posterior: SharedPosterior, head: Batch) -> None:
    """Raise a DataError where new data leave out what was observed in the fit: ``y=None``."""
    model = posterior.job.model
    pair = Pair(model, posterior.job.guide, head.args, head.kwargs)
    with handler_of_new(posterior, head):
        latent = inspect_model(pair).marginalized
    for name in posterior.structure.of_kind("observed"):
        if name in latent:
            raise DataError(
                f"log_evidence: site '{name}' is observed in the fit, but not with this data, whose "
                f"probability is asked for. Pass its values too, as in the fit: "
                f"log_evidence(data=(x, {name})), or predict(x) for draws of '{name}'."
            )


class SharedPosterior:
    """What a fit says of the latents that all rows share."""

    def __init__(self, job: Job) -> None:
        self.job, self._batch = job, next(job.source.sequence())
        self._pair = job.pair(self._batch)
        with job.handler(self._batch):
            self.structure = structure_of(self._pair)
        self.rows = job.row_plates(self.structure)
        sites = self.structure.sites
        mine = [n for n in sites if not self.rows.isdisjoint(sites[n].plates)]
        latent = self.structure.of_kind("latent", "marginalized")
        self.shared = [name for name in latent if name not in mine]
        self.local = [name for name in self.structure.of_kind("latent") if name in mine]
        self.drawn_locally = [name for name in self.structure.drawn if name in mine]

    @property
    def batch_size(self) -> int | None:
        """The rows in a batch; None where the fit took all rows at once."""
        return self._batch.size if self.job.data_plates else None

    def draw(self, count: int) -> Draws:
        """``[count, *shape]`` of all that is drawn outside of rows."""
        summed = [n for n in self.shared if n in self.structure.marginalized]
        with self.job.handler(self._batch):
            if summed:
                values = draw_latents(self.structure, self._pair, count)
            else:
                values = run_guide(self.structure, self._pair, draw_plainly, count).values
        wanted = [n for n in self.structure.drawn if n not in self.drawn_locally]
        return {name: values[name] for name in (*wanted, *summed)}

    def central(self) -> Draws:
        """The draw of shared latents that is nearest to their mean."""
        with forked_rng(seed=0):
            values = self.draw(_DRAWS_FOR_A_CENTER)
        continuous = [
            v.double().reshape(len(v), -1) for v in values.values() if v.is_floating_point()
        ]
        every = torch.cat([torch.zeros(_DRAWS_FOR_A_CENTER, 1), *continuous], 1)
        centered = (every - every.mean(0)) / every.std(0).clamp(min=1e-300)
        nearest = int(centered.square().sum(1).argmin())
        return {name: values[name][nearest] for name in self.shared}

    def reads_rows(self, new: Batch) -> bool:
        """Whether the guide finds latents of rows from the data, not from parameters of each row.

        Such a guide draws something else for its rows when these are turned round, or new ones.
        """
        size = self._batch.size or 1
        own, other = (self._batch.args, self._batch.kwargs), (new.args, new.kwargs)
        turned = _rows_taken(own, size, torch.arange(size).flip(0))
        replaced = _rows_taken(other, new.size, torch.arange(size) % (new.size or 1))
        before, *after = (self._drawn_from(data) for data in (own, turned, replaced))
        return all(
            any(not torch.equal(before[name], drawn[name]) for drawn in after)
            for name in self.local
        )

    def _drawn_from(self, data: Any) -> Draws:
        """What the guide draws for its own rows, always on the same random numbers."""
        args, kwargs = data
        pair = self._pair._replace(args=args, kwargs=kwargs)
        with forked_rng(seed=0), self.job.handler(self._batch):
            return run_guide(self.structure, pair, draw_plainly, 1).values


def _rows_taken(data: Any, size: int | None, rows: Tensor) -> Any:
    """The arguments with other rows, of those that have so many."""

    def taken(leaf: Any) -> Any:
        of_rows = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size
        return leaf[rows.to(leaf.device)] if of_rows else leaf

    return tree_map(taken, data)


def handler_of_new(posterior: SharedPosterior, batch: Batch) -> AbstractContextManager[Any]:
    """What tells the programs which rows a batch of new data has."""
    job, size, plates = posterior.job, batch.size or 0, posterior.rows
    if job.source.num_rows is None:
        return nullcontext()
    if not job.data_plates:
        with suppress(ModelError):  # a model that names N may not run on other rows by itself
            sizes = plate_dims(job.model, batch.args, batch.kwargs)
            if all(full == size for name, (_, full) in sizes.items() if name in plates):
                return nullcontext()
    # Any rows of the fit's do: a guide that reads the data does not ask for them. But they are the
    # same ones at each run, so that what is fitted to a new row stays its own.
    handler: AbstractContextManager[Any] = DataPlate(
        plates, job.source.num_rows, torch.arange(size), size
    )
    return handler


class NewRows:
    """Batches of new data, and the guide of each.

    Args:
        posterior: of what rows share.
        head: some of the new rows, on which it is seen whether the guide reads rows.
        held_out: sites of the model to leave out of the posterior of these rows.
        weighed: whether draws will be weighed, so that a rough fit does.
    """

    def __init__(
        self,
        posterior: SharedPosterior,
        head: Batch,
        held_out: Collection[str] = (),
        weighed: bool = True,
    ) -> None:
        self._posterior, self._weighed = posterior, weighed
        model = posterior.job.model
        self._model = hide(model, held_out) if held_out else model
        self._guides: dict[int, Program] = {}
        with torch.no_grad():
            self.amortized = bool(posterior.local) and posterior.reads_rows(head)
            self._central = posterior.central() if posterior.shared else {}

    def pair(self, number: int, batch: Batch) -> Pair:
        """The model and a guide of one batch, by its number."""
        if number not in self._guides:
            self._guides[number] = self._guide(number, batch)
        return Pair(self._model, self._guides[number], batch.args, batch.kwargs)

    def handler(self, batch: Batch) -> AbstractContextManager[Any]:
        """What tells the programs which rows a batch has."""
        return handler_of_new(self._posterior, batch)

    def _guide(self, number: int, batch: Batch) -> Program:
        """One that draws the latents of these rows, and holds the shared ones at some draw."""
        posterior, own = self._posterior, self._posterior.job.guide
        if self.amortized:
            summed = [n for n in posterior.shared if n in posterior.structure.marginalized]
            held = {name: self._central[name] for name in summed}
            return _holding(posterior.structure, held, own)
        if not posterior.local:
            return _holding(posterior.structure, self._central, None)
        model = self._model
        hidden = {*enumerable_sites(model, batch.args, batch.kwargs), *posterior.shared}
        normals = AutoNormal(hide(model, hidden), init_loc_fn=init_to_median(num_samples=100))
        normals._pyro_name = f"_new_rows_{number}"  # the fitted guide may be an AutoNormal too
        guide = _holding(posterior.structure, self._central, normals)
        with self.handler(batch):
            pair = Pair(model, guide, batch.args, batch.kwargs)
            fit_normals(pair, normals, self._draws_to_fit(pair))
        return guide

    def _draws_to_fit(self, pair: Pair) -> int:
        """A mean is off by one over the root of them, in standard deviations."""
        if self._weighed:
            return _DRAWS_TO_FIT
        affordable = _ELEMENTS_TO_FIT // max(1, elements(structure_of(pair)))
        return max(_DRAWS_TO_FIT, min(_MOST_TO_FIT, affordable))


def _holding(structure: Structure, values: Draws, guide: Program | None) -> Program:
    """The guide, with sites held at values besides those that it draws itself."""

    def holding(*args: Any, **kwargs: Any) -> None:
        names = {plate for name in values for plate in structure.sites[name].plates}
        plates = {
            name: pyro.plate(name, plate.full_size, subsample_size=plate.size, dim=plate.dim)
            for name, plate in structure.plates.items()
            if name in names
        }
        for name, value in values.items():
            site = structure.sites[name]
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate])
                pyro.sample(name, Delta(value, event_dim=site.event_dim))
        if guide is not None:
            guide(*args, **kwargs)

    return holding
