"""Coordinate ascent variational inference for any conjugate Pyro program."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vi.compilation import Wish
from ppl_vi.conjugacy import (
    Ascent,
    Kind,
    LatentSite,
    Table,
    Tensors,
    Weights,
    analyse,
    check_values,
    redrawn,
    remarks_on,
    start,
)
from ppl_vi.conjugacy.batches import (
    SPREAD,
    asked,
    global_blocks,
    local_sites,
    natural_step,
    on_rows,
    solved,
)
from ppl_vi.conjugacy.starts import draw_of_prior
from ppl_vi.data.sources import Batch
from ppl_vi.errors import GuideError
from ppl_vi.estimate import Estimate
from ppl_vi.guides.drawing import discrete, draw, plates_of
from ppl_vi.program import Pair, latents_of, unheard
from ppl_vi.program.row_draws import Part
from ppl_vi.randomness import forked_rng
from ppl_vi.ranks.sums import SumOverParts
from ppl_vi.registry import register_swept_guide

_FRESH, _MANY = 32, 3


class CAVIGuide(torch.nn.Module):
    """Independent conjugate factors, each set to its optimum given the others, over and over.

    q(z) = Π_j q_j(z_j),  log q_j(z_j) = E_{-j} log p(x, z) + const

    The updates are derived from the program: its latents carry moments instead of values, and the
    gradient of the expected log-joint in the moments of a factor is the factor's new natural
    parameter. Finite discrete latents are summed out exactly in sweeps, and drawn in the guide, each
    given those that it depends on. Entries of a Gaussian site that depend on each other given all else
    (regression weights, say) share a full covariance. Parameters of the model (``pyro.param``) are set
    to where the bound is highest, which is variational EM, and without continuous latents EM itself.
    The ELBO never falls, and is exact.

    Continuous latents that are not conjugate have Gaussian factors before a transform to their support,
    one for each entry, which each sweep moves uphill along gradients. Their expectations are means over
    32 draws of noise that are made once, so that the bound on these draws never falls; the others'
    updates are exact on it. ``remarks`` says which sites these are, and why.

    With minibatches, the factors of rows are solved for in each batch, and the others take a natural
    gradient step of size (t + delay)^-forgetting: the bound of each step is then noisy.

    Args:
        model: a Pyro model. Of its latents some are Normal, MultivariateNormal, Gamma, InverseGamma,
            Exponential, Beta, Dirichlet, Wishart, or discrete with finite support.
        structured: whether a Gaussian latent whose own precision is a multiple of a Gamma, InverseGamma
            or Wishart latent has a joint factor with it, q(τ) q(μ | τ) (Normal-Gamma, Normal-Wishart),
            where the algebra allows; the bound is higher then.
        delay: of the step size on minibatches, 0 or more; more makes early steps smaller.
        forgetting: how fast it falls, above 0.5 and at most 1.

    Raises:
        ValueError: delay or forgetting are out of range.
        ModelError: when it begins on data, no site is conjugate; the message names one, and the
            operation that has no moments. A site that is not uses the value of a latent in a branch, or
            has a support that moves. With ``structured``, no factor can be joint.
        GuideError: on minibatches, a site is not conjugate.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import fit
        >>> from ppl_vi.guides import CAVIGuide
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)
        >>> result = fit(model, CAVIGuide(model), torch.tensor([1.0, 2.0, 3.0]), progress=False)
        >>> round(result.guide.factors()["mean"].mean.item(), 2)
        1.99
        >>> def model(x):
        ...     precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
        ...     mean = pyro.sample("mean", dist.Normal(0.0, (0.5 * precision).rsqrt()))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)
        >>> guide = CAVIGuide(model, structured=True)
        >>> result = fit(model, guide, torch.tensor([1.0, 2.0, 3.0]), progress=False)
        >>> factor = result.guide.factors()["mean"]
        >>> type(factor).__name__, round(factor.mean.item(), 2)
        ('StudentT', 1.71)

    Source: Bishop (2006), sections 2.3.6 and 3.3, and chapter 10; Winn and Bishop (2005); Hoffman,
    Blei, Wang and Paisley (2013); Giordano, Ingram and Broderick (2024), for sites left to gradients.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        structured: bool = False,
        delay: float = 1.0,
        forgetting: float = 0.51,
    ) -> None:
        super().__init__()
        _check_rates(delay, forgetting)
        self.structured, self.delay, self.forgetting = structured, delay, forgetting
        self._model = (model,)  # in a tuple: a model that is a module is no part of the guide
        self._ascent: Ascent | None = None
        self._sites: dict[str, LatentSite] = {}
        self._buffers_of: dict[str, tuple[str, ...]] = {}
        self._parents: dict[str, tuple[str, ...]] = {}
        self._learned: tuple[Tensor, ...] = ()
        self._weights: Weights = {}
        self._rows: frozenset[str] = frozenset()
        self._local: set[str] = set()
        self._kinds: tuple[Kind, ...] = ()
        self._before: tuple[Ascent, dict[str, LatentSite], dict[str, Tensors]] | None = None

    def begin(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: Mapping[str, Tensor],
        rows: frozenset[str] = frozenset(),
        elsewhere: bool = False,
        wish: Wish = "auto",
    ) -> None:
        """Derive the updates for these arguments, and start.

        Args:
            args: of the model.
            kwargs: likewise.
            values: where factors start, by site, and parameters, by name. Without values of sites, they
                start where clusters of the observed values put them, and without discrete latents at
                a draw from the prior.
            rows: names of the plates over the rows of minibatches; factors inside are not kept.
            elsewhere: whether the clusters move parameters too, from where the program puts them.
            wish: whether to compile; ``False`` runs the program again and again.

        Raises:
            ModelError: a site is not conjugate, or a value is of no continuous latent or parameter.
        """
        ascent, latents = analyse(self._pair(args, kwargs), self.structured)
        self._ascent, self._sites = ascent, {site.name: site for site in latents.sites}
        known = dict(pyro.get_param_store().named_parameters())
        self._learned = tuple(known[name] for name in latents.parameters)
        self._rows, self._local = rows, local_sites(ascent, self._sites, rows)
        if rows:
            _check_batches(ascent, latents.parameters)
        check_values(values, ascent.draws, known)
        located = {name: values.get(name, draw).detach() for name, draw in ascent.draws.items()}
        state = ascent.around(located, SPREAD)
        self._kinds = ()
        if ascent.enumerated and not values.keys() & ascent.draws.keys():
            moved = self._learned if elsewhere and not values else ()
            with pyro.validation_enabled(False):
                state = start(ascent, state, moved, wish)
        self._buffers_of = {
            name: tuple(f"factor_{number}_{place}" for place in range(len(state[name])))
            for number, name in enumerate(ascent.families)
            if name not in self._local
        }
        for name, buffers in self._buffers_of.items():
            for buffer, tensor in zip(buffers, state[name], strict=True):
                self._keep(buffer, tensor)
        self._parents = {}
        if rows:
            return
        with pyro.validation_enabled(False):
            self._weights = ascent.weights(state)[1]
        self._keep_tables(ascent.tables(state, self._weights))

    @property
    def searched(self) -> str:
        """What each sweep searches for, in words; empty where all updates are in closed form."""
        names = ", ".join(f"'{name}'" for name in (self._ascent.sampled if self._ascent else ()))
        if names:
            return f"factors of {names} are searched for in each sweep"
        return "parameters of the model are searched for in each sweep" if self._learned else ""

    def divide(self, batch: Batch, rows: frozenset[str]) -> None:
        """Go on with the rows of one of several processes, which has the factors of these alone.

        To be called under the handler of the batch, whose rows then count for all.

        Args:
            batch: some of the rows that it began with.
            rows: names of the plates over them.

        Raises:
            GuideError: a factor of rows is left to gradients.
            ModelError: a factor is shared by rows.
        """
        whole, state, pair = self._begun(), self._state(), self._pair(batch.args, batch.kwargs)
        sites = {site.name: site for site in latents_of(pair, draw_of_prior).sites}
        local = local_sites(whole, sites, rows)
        _check_divided(whole, local)
        parts = None if batch.part is None else SumOverParts(batch.part)
        ascent = replace(on_rows(whole, pair, sites, {}), parts=parts, local=local)
        here = ascent.around(ascent.draws, SPREAD)
        self._before = (whole, self._sites, {name: state[name] for name in local})
        self._ascent, self._sites = ascent, sites
        for name in local:
            for buffer, full, like in zip(
                self._buffers_of[name], state[name], here[name], strict=True
            ):
                self._keep(buffer, _taken(full, like, batch))
        with pyro.validation_enabled(False):
            self._weights = ascent.weights(self._state())[1]
        self._keep_tables(ascent.tables(self._state(), self._weights))

    def unite(self, batch: Batch, whole: bool) -> None:
        """Be by itself again, after the last sweep.

        Args:
            batch: the rows that it went on with.
            whole: whether to have the factors of all rows again, which are then with every process.
        """
        if self._before is None or batch.part is None:
            return
        (before, sites, states), self._before = self._before, None
        if not whole:
            self._ascent = replace(self._begun(), parts=None)
            return
        for name, full in states.items():
            for buffer, like in zip(self._buffers_of[name], full, strict=True):
                own = self.get_buffer(buffer)
                self._keep(buffer, batch.part.sum(_returned(own, like, batch)))
        self._ascent, self._sites = before, sites
        with unheard(), pyro.validation_enabled(False):
            self._weights = before.weights(self._state())[1]
            self.settle()

    def tensors(self) -> tuple[Tensor, ...]:
        """All that a sweep or a step starts from: natural parameters, and the weights at them."""
        own = self._state().values()
        return *(tensor for tensors in own for tensor in tensors), *self._weights.values()

    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Take the tensors that a sweep or a step came to."""
        new = iter(tensor.detach() for tensor in tensors)
        for buffers in self._buffers_of.values():
            for buffer in buffers:
                self.get_buffer(buffer).copy_(next(new))  # in place: others hold it
        self._weights = {group: next(new) for group in self._weights}

    def noise(self) -> dict[str, Tensor]:
        """The draws on which expectations of sites left to gradients are taken, by site."""
        return {name: factor.noise for name, factor in self._begun().sampled.items()}

    def use_noise(self, noise: Mapping[str, Tensor]) -> None:
        """Take expectations on other draws, those of a fit that goes on."""
        ascent = self._begun()
        own = {n: replace(f, noise=noise[n].to(f.noise)) for n, f in ascent.sampled.items()}
        self._ascent = replace(ascent, families={**ascent.families, **own})

    def sweep(self) -> float:
        """Update every factor once; gives the exact ELBO after that, in nats."""
        with pyro.validation_enabled(False):
            self._weights = self._begun().weights(self._state())[1]
        elbo, *new = self.swept()
        self.adopt(new)
        return elbo.item()

    def swept(self) -> tuple[Tensor, ...]:
        """The exact ELBO in nats after an update of every factor, and the tensors it comes to."""
        ascent = self._begun()
        with pyro.validation_enabled(False):
            state = ascent.best(self._state(), self._weights)
            state = ascent.search(state, self._weights)
            if self._learned:
                ascent.maximize(state, self._weights, self._learned)
            elbo, weights = ascent.weights(state)
            elbo = ascent.totals((elbo,))[0]
        return elbo, *_flat(state), *weights.values()

    def stepper(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], part: Part | None = None
    ) -> Callable[[Tensor | None], tuple[Tensor, ...]]:
        """A natural-gradient step on a minibatch.

        Args:
            args: of the model, with the rows of the batch.
            kwargs: likewise.
            part: where the rows stand in a batch that several processes share.

        Returns:
            A function from the step size (``None`` for a whole sweep) to the bound, as the batch tells
            it before the step, and the tensors that it comes to.
        """
        ascent, _ = self._on(args, kwargs)
        if part is not None:
            ascent = replace(ascent, parts=SumOverParts(part), local=self._local)

        def step(rate: Tensor | None) -> tuple[Tensor, ...]:
            with pyro.validation_enabled(False):
                bound, state = natural_step(ascent, self._state(), self._local, rate)
            return bound, *_flat(state)

        return step

    @property
    def passes(self) -> int:
        """How often a sweep looks at each part of the rows: once for each block of global factors."""
        blocks = global_blocks(self._ascent, self._local) if self._ascent else ()
        return max(1, len(blocks))

    def asked(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int, now: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """What some rows ask for in one pass of a sweep over all parts of them.

        Args:
            args: of the model, with the rows.
            kwargs: likewise.
            number: of the pass.
            now: the tensors that the passes before came to.

        Returns:
            The bound before the sweep, in nats, and the gradients of the bound that the update of this
            pass takes; both are weighted by the part's share of all rows, and added up.
        """
        ascent, _ = self._on(args, kwargs)
        with pyro.validation_enabled(False):
            block = self._block(number)
            return asked(ascent, self._state(), self._of(now), self._local, block)

    def asked_like(self, number: int) -> tuple[Tensor, ...]:
        """Tensors of the shapes that ``asked`` gives."""
        moments = self._begun().moments(self._state())
        own = [leaf for name in self._block(number) for leaf in moments[name]]
        device = own[0].device if own else None
        return torch.zeros((), dtype=torch.float64, device=device), *own

    def answered(
        self, number: int, now: Sequence[Tensor], total: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The tensors that a pass comes to, from the sum of what all parts ask for.

        Args:
            number: of the pass.
            now: the tensors that the passes before came to.
            total: the gradients.
        """
        ascent, state, block = self._begun(), self._of(now), self._block(number)
        moments = ascent.moments(state)
        return _flat({**state, **ascent.natural(block, moments, total)})

    def _block(self, number: int) -> tuple[str, ...]:
        blocks = global_blocks(self._begun(), self._local)
        return blocks[number] if blocks else ()

    def evaluated(self, elbo: float) -> Estimate:
        """The bound, from that of the last sweep: the same, where no site is left to gradients.

        Else the sweeps have fitted the draws that they are made on, so that it is taken again on fresh
        ones, with a standard error.
        """
        ascent, state = self._begun(), self._state()
        if not ascent.sampled:
            return Estimate(elbo)
        with pyro.validation_enabled(False), forked_rng(seed=0):
            fitted = ascent.at(state, self._weights)
            others = (
                replace(ascent, families=redrawn(ascent.families)).at(state, self._weights)
                for _ in range(_FRESH)
            )
            gaps = torch.stack([other - fitted for other in others])
        return Estimate(elbo + gaps.mean().item(), gaps.std().item() / _FRESH**0.5)

    def settle(self) -> None:
        """Set the factors of discrete latents, which sweeps leave out, to their optimum.

        And count their elements, which ``bound`` does of minibatches.
        """
        ascent, state = self._begun(), self._state()
        self._kinds = ()
        if not self._rows:
            self._keep_tables(ascent.tables(state, self._weights))
            own = 1.0 if ascent.parts is None else ascent.parts.part.share
            self._count(ascent, state, self._weights, own)

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any], share: float) -> Tensor:
        """The bound with the factors of these rows at their optimum, in nats.

        Their elements are counted, with those of other batches since ``settle``.

        Args:
            args: of the model, with the rows of a batch.
            kwargs: likewise.
            share: the batch's part of all rows.
        """
        ascent, _ = self._on(args, kwargs)
        with pyro.validation_enabled(False):
            found, state, weights = solved(ascent, self._state(), self._local)
        self._count(ascent, state, weights, share)
        return found

    def _count(
        self, ascent: Ascent, state: dict[str, Tensors], weights: Weights, share: float
    ) -> None:
        """Add to the counts what is expected of these rows, each of which stands for 1 / share."""
        found, first = ascent.counts(state, weights), not self._kinds
        self._kinds = tuple(kind for kind, _ in found)
        for number, (_, counts) in enumerate(found):
            before = 0.0 if first else self.get_buffer(f"counts_{number}")
            self._keep(f"counts_{number}", before + share * counts.detach())

    def add_up(self, sum: Callable[[Tensor], Tensor]) -> None:
        """Count the elements of all processes, each of which has counted its own.

        Args:
            sum: of everyone's tensors.
        """
        for number in range(len(self._kinds)):
            self._keep(f"counts_{number}", sum(self.get_buffer(f"counts_{number}")))

    def occupancies(self) -> dict[str, Tensor]:
        """How many elements the fit expects in each state, Σ_i q(z_i = k), ``[K]`` by discrete site.

        Sites of one kind, such as those of a Markov chain, are counted together under the name of the
        first. A component with less than one element is empty: its factors owe less to the data than
        a single observation would give them, and are close to their prior. Empty before a fit.
        """
        named = {kind.sites[0]: f"counts_{number}" for number, kind in enumerate(self._kinds)}
        return {name: self.get_buffer(buffer).clone() for name, buffer in named.items()}

    def not_finite(self) -> tuple[str, ...]:
        """The sites whose factors have parameters that are not finite."""
        return tuple(
            name
            for name, buffers in self._buffers_of.items()
            if not all(torch.isfinite(self.get_buffer(buffer)).all() for buffer in buffers)
        )

    def remarks(self) -> tuple[str, ...]:
        """Which sites are left to gradients, and which components are empty."""
        ascent = self._begun()
        left = [f"{name} ({factor.reason})" for name, factor in ascent.sampled.items()]
        exact = [name for name in ascent.draws if name not in ascent.sampled]
        many = len(ascent.enumerated) > _MANY
        exact += [f"{len(ascent.enumerated)} discrete latents"] if many else ascent.enumerated
        told = f"exact updates: {', '.join(exact)}; gradients: {', '.join(left)}"
        return *((told,) if left else ()), *remarks_on(self.occupancies())

    def factors(self) -> dict[str, Any]:
        """The factors by site, as Pyro distributions, ``[*plates]`` of events.

        Gaussian sites whose entries are coupled across plates are vectors, MultivariateNormal. Those in
        a joint factor with their precision are here by themselves, StudentT or MultivariateStudentT.
        So are discrete latents that depend on others, such as those of a Markov chain: the guide draws
        each given its parents, and here is its marginal. Those whose q is no product of that kind (two
        chains that meet in every observation) are left out; after minibatches so are the latents of
        rows, which are solved for when the guide is called with rows.
        """
        ascent, found = self._begun(), dict[str, Any]()
        for name, own in self._state().items():
            found |= ascent.families[name].distributions(own)
        tables = self._tables().items()
        return {**found, **{n: discrete(self._sites[n], table.marginal) for n, table in tables}}

    def _tables(self) -> dict[str, Table]:
        """Of the discrete latents, as far as they are kept."""
        own = enumerate(self._parents.items())
        return {n: Table(parents, self.get_buffer(f"states_{i}")) for i, (n, parents) in own}

    def _keep_tables(self, tables: Mapping[str, Table]) -> None:
        self._parents = {name: table.parents for name, table in tables.items()}
        for number, table in enumerate(tables.values()):
            self._keep(f"states_{number}", table.joint)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, inside the plates of the model."""
        if self._ascent is None:
            self.begin(args, kwargs, {})
        if not self._rows:
            ascent, state, tables, sites = self._begun(), self._state(), self._tables(), self._sites
            return draw(ascent.families, state, tables, sites, plates_of(sites))
        with unheard():
            _, sites = self._on(args, kwargs)
        plates = plates_of(sites)
        rows = {
            n: plate.indices for n, plate in plates.items() if plate.subsample_size < plate.size
        }
        with unheard(), pyro.validation_enabled(False):
            ascent, sites = self._on(args, kwargs, rows)
            _, state, weights = solved(ascent, self._state(), self._local)
            tables = ascent.tables(state, weights)
        return draw(ascent.families, state, tables, sites, plates)

    def _on(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rows: Mapping[str, Tensor] | None = None,
    ) -> tuple[Ascent, dict[str, LatentSite]]:
        """The ascent on a batch, and the sites of the model there."""
        pair = self._pair(args, kwargs)
        sites = {site.name: site for site in latents_of(pair, draw_of_prior).sites}
        return on_rows(self._begun(), pair, sites, rows or {}), sites

    def _pair(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
        return Pair(self._model[0], self._model[0], args, kwargs)

    def _state(self) -> dict[str, Tensors]:
        own = self._buffers_of.items()
        return {name: tuple(map(self.get_buffer, buffers)) for name, buffers in own}

    def _of(self, tensors: Sequence[Tensor]) -> dict[str, Tensors]:
        """The factors whose tensors these are, one after the other."""
        new = iter(tensors)
        return {name: tuple(next(new) for _ in own) for name, own in self._buffers_of.items()}

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Lay a tensor into the buffer of this name, the same one in every restart of a fit."""
        held = self._buffers.get(name)
        if held is not None and (held.shape, held.dtype) == (tensor.shape, tensor.dtype):
            held.copy_(tensor.detach())
        else:
            self.register_buffer(name, tensor.detach().clone())

    def _begun(self) -> Ascent:
        if self._ascent is None:
            raise GuideError("CAVIGuide has no factors before it begins on data. Fit it first.")
        return self._ascent


def _flat(state: Mapping[str, Tensors]) -> tuple[Tensor, ...]:
    return tuple(tensor for own in state.values() for tensor in own)


def _check_batches(ascent: Ascent, parameters: Sequence[str]) -> None:
    """Raise GuideError for what natural-gradient steps on minibatches do not move."""
    if parameters:
        raise GuideError(
            f"parameter '{parameters[0]}' of the model: parameters are not learned from minibatches, "
            f"nor from rows read in parts. Give it a prior, or pass tensors, without batch_size."
        )
    for name, factor in ascent.sampled.items():
        raise GuideError(
            f"site '{name}' is left to gradients ({factor.reason}), which minibatches "
            f"(batch_size) and rows read in parts do not allow here. Fit the model with the guide "
            f"'normal', or to fewer rows at once."
        )


def _check_divided(ascent: Ascent, local: Collection[str]) -> None:
    """Raise GuideError for factors that several processes cannot have a part each of."""
    for name in ascent.sampled.keys() & local:
        raise GuideError(
            f"site '{name}' is left to gradients ({ascent.sampled[name].reason}) and is one of rows, "
            f"which several processes do not allow here. Use one process, or the guide 'normal'."
        )


def _taken(full: Tensor, like: Tensor, batch: Batch) -> Tensor:
    """The rows of a batch from a tensor of all rows; as the batch has it, where that has others."""
    if batch.rows is None or full.dim() != like.dim():
        return like
    dims = [dim for dim, size in enumerate(like.shape) if size != full.shape[dim]]
    if not dims:
        return full
    if len(dims) > 1 or full.shape[dims[0]] <= int(batch.rows.max()):
        return like
    return full.index_select(dims[0], batch.rows.to(full.device))


def _returned(own: Tensor, like: Tensor, batch: Batch) -> Tensor:
    """A tensor of all rows with those of a batch at their places, and zeros elsewhere."""
    everyone = torch.zeros_like(like)
    dims = [dim for dim, size in enumerate(own.shape) if size != like.shape[dim]]
    if batch.own and batch.rows is not None:
        if not dims:
            return own.clone()
        everyone.index_copy_(dims[0], batch.rows.to(own.device), own)
    return everyone


def _check_rates(delay: float, forgetting: float) -> None:
    if not (delay >= 0 and math.isfinite(delay)):
        raise ValueError(f"delay must be a number from 0 on, not {delay!r}.")
    if not 0.5 < forgetting <= 1:
        raise ValueError(f"forgetting must be above 0.5 and at most 1, not {forgetting!r}.")


register_swept_guide("cavi", CAVIGuide)
