"""New observations: at the rows of the fit, and at new rows of any number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vi.data.sources import Batch
from ppl_vi.errors import DataError, ModelError
from ppl_vi.evaluation import in_chunks
from ppl_vi.job import Job
from ppl_vi.preparation import check_whole, structure_of
from ppl_vi.program import (
    Pair,
    Structure,
    completed,
    draw_latents,
    inspect_model,
    observed_sites,
    predictive_draws,
    squeezed,
    state_probabilities,
)
from ppl_vi.questions.posterior import Drawn, Draws, Groups, Posterior
from ppl_vi.questions.predicting import NewRows, SharedPosterior, handler_of_new
from ppl_vi.questions.weighing import Held, at_once
from ppl_vi.sweeping.guides import marginalized

LocalLatents = Literal["auto", "prior"]


class Prediction(dict[str, Tensor]):
    """Predictive draws by site, ``[num_samples, *plates, *event]``.

    Attributes:
        local_latents: where the latents of rows come from, by site: ``"posterior"`` (rows of the
            fit), ``"encoder"``, ``"local fit"``, ``"exact conditional"`` or ``"prior"``.
    """

    local_latents: dict[str, str]

    def __init__(self, draws: Mapping[str, Tensor], local_latents: Mapping[str, str]) -> None:
        super().__init__(draws)
        self.local_latents = dict(local_latents)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {list(value.shape)}" for name, value in self.items())
        origins = ", ".join(f"{name} from {how}" for name, how in self.local_latents.items())
        return f"Prediction({shapes}{'; ' if origins else ''}{origins})"

    def __reduce__(self) -> Any:
        return type(self), (dict(self), self.local_latents)


def replicated(posterior: Posterior, num_draws: int) -> Prediction:
    """New observations at the rows of the fit, given all latents.

    Args:
        posterior: of the fit.
        num_draws: how many.
    """
    rows: frozenset[str] = frozenset()
    latents: set[str] = set()

    def answer(drawn: Drawn) -> Groups:
        nonlocal rows, latents
        structure, pair, values, count = drawn[:4]
        rows = posterior.job.row_plates(structure) | drawn.rows
        latents = {
            name
            for name in structure.of_kind("latent", "marginalized")
            if not rows.isdisjoint(structure.sites[name].plates)
        }
        names = [*observed_sites(structure), *structure.of_kind("deterministic")]
        new = predictive_draws(completed(structure), pair, values, count, names)
        new |= {name: values[name] for name in structure.sites if name in latents}
        return {"new": {name: squeezed(structure, name, value) for name, value in new.items()}}

    groups = posterior.collect(num_draws, answer)
    return Prediction(groups["new"], dict.fromkeys(sorted(latents), "posterior"))


class NewData:
    """New rows under a fitted posterior; to be used inside the fitted parameters.

    Args:
        job: the fitted model and guide.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        local_latents: ``"auto"``, or ``"prior"`` to draw latents of rows from the model whatever is
            observed.

    Raises:
        ModelError, DataError: the model does not run on these arguments.
    """

    def __init__(
        self,
        job: Job,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        local_latents: LocalLatents = "auto",
    ) -> None:
        if local_latents not in ("auto", "prior"):
            raise ValueError(f"local_latents must be 'auto' or 'prior', not {local_latents!r}.")
        self._job, self._posterior = job, SharedPosterior(marginalized(job))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
        self._batch = Batch(args, kwargs, None, len(tensors[0]) if tensors else None)
        structure, rows = self._posterior.structure, self._posterior.rows
        self.seen = self._inspected(Pair(job.model, job.guide, args, kwargs))
        check_whole(self.seen, rows, "a prediction")
        unknown, latents = self.seen.marginalized, structure.of_kind("latent", "marginalized")
        self._local = [n for n in unknown if n in latents and n not in self._posterior.shared]
        held_out = [n for n in unknown if n not in latents]
        told = [n for n in observed_sites(self.seen) if rows & set(self.seen.sites[n].plates)]
        informed = self._local and told and local_latents == "auto"
        self._new = (
            NewRows(self._posterior, self._batch, held_out, weighed=False) if informed else None
        )

    def _inspected(self, pair: Pair) -> Structure:
        try:
            with self._handler():
                seen = inspect_model(pair)
            return replace(seen, model_particles=self._posterior.structure.model_particles)
        except ModelError as error:
            size, num_rows = self._batch.size or 0, self._job.source.num_rows or 0
            if size <= num_rows:
                raise
            raise DataError(
                f"predict: the model does not run on {size} rows, more than the {num_rows} of the fit: "
                f"{error} Take the sizes of plates and tensors from the data, as in "
                f"pyro.plate('data', len(x))."
            ) from error

    def _handler(self) -> AbstractContextManager[Any]:
        return handler_of_new(self._posterior, self._batch)

    @property
    def local_latents(self) -> dict[str, str]:
        """Where the latents of the new rows come from, by site."""
        if self._new is None:
            return dict.fromkeys(self._local, "prior")
        how = "encoder" if self._new.amortized else "local fit"
        summed = self._posterior.structure.marginalized
        return {name: "exact conditional" if name in summed else how for name in self._local}

    def shared(self, num_draws: int) -> Draws:
        """``[num_draws, *shape]`` of what lies outside of rows, from the posterior."""

        def answer(drawn: Drawn) -> Groups:
            return {"shared": {n: drawn.values[n] for n in wanted if n in drawn.values}}

        structure = self._posterior.structure
        drawn = [n for n in structure.drawn if n not in self._posterior.drawn_locally]
        wanted = [*drawn, *(n for n in self._posterior.shared if n not in drawn)]
        return Posterior(self._job).collect(num_draws, answer).get("shared", {})

    def draws(self, num_draws: int) -> Iterator[Drawn]:
        """Draws of the latents of the new rows and of what they share, chunk by chunk."""
        shared = self.shared(num_draws)
        pair = self._new.pair(0, self._batch) if self._new else None
        start = 0
        for count in in_chunks(num_draws, at_once(self.seen)):
            given = {name: value[start : start + count] for name, value in shared.items()}
            start += count
            if pair is None:
                own = Pair(self._job.model, self._job.guide, self._batch.args, self._batch.kwargs)
                yield Drawn(self._posterior.structure, own, given, count)
                continue
            with self._handler():
                structure = structure_of(pair)
                values = draw_latents(structure, pair, count, Held(structure, given))
            yield Drawn(structure, pair, {**given, **values}, count)

    def predicted(self, num_draws: int) -> tuple[Draws, list[str]]:
        """Draws of all sites on the new data, and which of them are answers: all but shared latents."""
        sites = self.seen.sites
        factors = set(self.seen.of_kind("observed")) - set(observed_sites(self.seen))
        names = [name for name in sites if name not in factors]
        chunks = []
        for drawn in self.draws(num_draws):
            pair = drawn.pair._replace(model=self._job.model)
            known = {n: v for n, v in drawn.values.items() if n in sites}
            with self._handler():
                new = predictive_draws(self.seen, pair, known, drawn.num_draws, names)
            chunks.append({name: squeezed(self.seen, name, new[name]) for name in names})
        draws = {name: torch.cat([chunk[name] for chunk in chunks]) for name in names}
        return draws, [name for name in names if name not in self._posterior.shared]

    def probabilities(self, name: str, num_draws: int) -> Tensor:
        """``[*plates, states]``: of the states of a discrete latent of rows.

        Raises:
            DataError: nothing is observed at the new rows.
        """
        if self._new is None:
            raise DataError(
                f"responsibilities: site '{name}': nothing that it explains is observed in the new "
                f"data. Pass the observed values too."
            )
        total: Any = 0
        for drawn in self.draws(num_draws):
            with self._handler():
                total = total + states_of(drawn, name).sum(0)
        return torch.as_tensor(total / num_draws)


def states_of(drawn: Drawn, name: str) -> Tensor:
    """``[num_draws, *plates, states]``: the probabilities of a discrete latent's states.

    Args:
        drawn: draws of all others.
        name: of the latent.
    """
    structure, pair, values, count = drawn[:4]
    return state_probabilities(structure, pair, values, count, name, Held(structure, values))
