"""Coordinate ascent variational inference for any conjugate Pyro program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.compilation import Captured, capture
from ppl_vi.conjugacy import Ascent, Family, GaussianFamily, LatentSite, Tensors, analyse
from ppl_vi.errors import CompileError, GuideError
from ppl_vi.program import Pair
from ppl_vi.registry import register_swept_guide

_SPREAD = 0.3


class CAVIGuide(torch.nn.Module):
    """Independent conjugate factors, each set to its optimum given the others, over and over.

    q(z) = Π_j q_j(z_j),  log q_j(z_j) = E_{-j} log p(x, z) + const

    The updates are derived from the program: its latents carry moments instead of values, and the
    gradient of the expected log-joint in the moments of a factor is the factor's new natural
    parameter. Finite discrete latents are summed out exactly. Entries of a Gaussian site that depend on
    each other given all else (regression weights, say) share a full covariance. Parameters of the model
    (``pyro.param``) are set to where the bound is highest, which is variational EM, and without
    continuous latents EM itself. The ELBO never falls, and is exact.

    Args:
        model: a Pyro model. Its latents are Normal, MultivariateNormal, Gamma, InverseGamma,
            Exponential, Beta, Dirichlet, Wishart, or discrete with finite support.
        structured: whether a Gaussian latent whose own precision is a multiple of a Gamma, InverseGamma
            or Wishart latent has a joint factor with it, q(τ) q(μ | τ) (Normal-Gamma, Normal-Wishart),
            where the algebra allows; the bound is higher then.

    Raises:
        ModelError: when it begins on data, a site is not conjugate; the message names it, and the
            operation that has no moments. With ``structured``, no factor can be joint.

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

    Source: Bishop (2006), sections 2.3.6 and 3.3, and chapter 10; Winn and Bishop (2005); Blei,
    Kucukelbir and McAuliffe (2017).
    """

    def __init__(self, model: Callable[..., Any], structured: bool = False) -> None:
        super().__init__()
        self._structured = structured
        self._model = (model,)  # in a tuple: a model that is a module is no part of the guide
        self._ascent: Ascent | None = None
        self._sites: dict[str, LatentSite] = {}
        self._buffers_of: dict[str, tuple[str, ...]] = {}
        self._learned: tuple[Tensor, ...] = ()
        self._captured: Captured | None = None

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Tensor]
    ) -> None:
        """Derive the updates for these arguments, and start.

        Args:
            args: of the model.
            kwargs: likewise.
            values: where factors start, by site. Others start where random assignments of the discrete
                latents put them, or without these at a draw from the prior.

        Raises:
            ModelError: a site is not conjugate.
        """
        ascent, latents = analyse(
            Pair(self._model[0], self._model[0], args, kwargs), self._structured
        )
        self._captured = None
        self._ascent, self._sites = ascent, {site.name: site for site in latents.sites}
        known = dict(pyro.get_param_store().named_parameters())
        self._learned = tuple(known[name] for name in latents.parameters)
        start = {**ascent.draws, **{n: v.detach() for n, v in values.items() if n in ascent.draws}}
        state = ascent.around(start, _SPREAD)
        if ascent.enumerated and not values.keys() & ascent.draws.keys():
            state = ascent.from_responsibilities(state, ascent.random_responsibilities(state))
        self._buffers_of = {
            name: tuple(f"factor_{number}_{place}" for place in range(len(state[name])))
            for number, name in enumerate(ascent.families)
        }
        for name, buffers in self._buffers_of.items():
            for buffer, tensor in zip(buffers, state[name], strict=True):
                self.register_buffer(buffer, tensor.detach().clone())
        conditionals = ascent.conditionals(state)
        self._discrete = tuple(conditionals)
        for number, probabilities in enumerate(conditionals.values()):
            self.register_buffer(f"states_{number}", probabilities.detach().clone())

    def sweep(self) -> float:
        """Update every factor once; gives the exact ELBO after that, in nats."""
        if self._captured is not None:
            elbo, *new = self._captured(*self._tensors())
        else:
            elbo, *new = self._swept()
        with torch.no_grad():
            for tensor, value in zip(self._tensors(), new, strict=True):
                tensor.copy_(value)
        return float(elbo)

    def capture(self) -> None:
        """Repeat the operations of a sweep from now on, without the program around them.

        Raises:
            CompileError: they cannot be repeated.
        """
        if self._learned:
            raise CompileError("parameters of the model are searched for in each sweep")
        self._captured = capture(self._swept, self._tensors())

    def settle(self) -> None:
        """Set the factors of discrete latents, which sweeps leave out, to their optimum."""
        found = self._begun().conditionals(self._state())
        for number, probabilities in enumerate(found.values()):
            self.get_buffer(f"states_{number}").copy_(probabilities)

    def factors(self) -> dict[str, Any]:
        """The factors by site, as Pyro distributions, ``[*plates]`` of events.

        Gaussian sites whose entries are coupled across plates are vectors, MultivariateNormal. Those in
        a joint factor with their precision are here by themselves, StudentT or MultivariateStudentT.
        Discrete latents that are tied to other discrete ones (a Markov chain) are left out.
        """
        ascent, state = self._begun(), self._state()
        found: dict[str, Any] = {}
        for name, family in ascent.families.items():
            found |= family.distributions(state[name])
        return {**found, **self._discrete_factors()}

    def _discrete_factors(self) -> dict[str, Any]:
        found = {}
        for number, name in enumerate(self._discrete):
            probabilities = self.get_buffer(f"states_{number}")
            bernoulli = self._sites[name].prior == "Bernoulli"
            found[name] = (
                dist.Bernoulli(probs=probabilities[..., 1])
                if bernoulli
                else dist.Categorical(probs=probabilities)
            )
        return found

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, inside the plates of the model."""
        if self._ascent is None:
            self.begin(args, kwargs, {})
        ascent, state = self._begun(), self._state()
        plates = {p.name: p for site in self._sites.values() for p in site.plates}
        made = {name: pyro.plate(name, p.size, dim=p.dim) for name, p in plates.items()}
        drawn: dict[str, Tensor] = {}

        def draw(name: str, factor: Any) -> Tensor:
            with ExitStack() as stack:
                for plate in self._sites[name].plates:
                    stack.enter_context(made[plate.name])
                drawn[name] = pyro.sample(name, factor)
            return drawn[name]

        def draw_family(family: Family, factor: Any) -> Tensor:
            if isinstance(family, GaussianFamily) and family.jointly:
                vectors = pyro.sample(
                    f"{family.site}_jointly",
                    factor.to_event(len(factor.batch_shape)),
                    infer={"is_auxiliary": True},
                )
                factor = dist.Delta(family.laid_out(vectors), event_dim=family.event_dim)
            return draw(family.site, factor)

        for name, own in ascent.families.items():
            own.draw(state[name], draw_family)
        for name, factor in self._discrete_factors().items():
            draw(name, factor)
        return drawn

    def _swept(self) -> tuple[Tensor, ...]:
        """The ELBO after a sweep, and the natural parameters."""
        ascent = self._begun()
        with pyro.validation_enabled(False):
            state = ascent.sweep(self._state())
            if self._learned:
                ascent.maximize(state, self._learned)
            elbo = ascent.elbo(state)
        return elbo, *(tensor for name in ascent.families for tensor in state[name])

    def _tensors(self) -> tuple[Tensor, ...]:
        """All natural parameters."""
        return tuple(tensor for own in self._state().values() for tensor in own)

    def _state(self) -> dict[str, Tensors]:
        own = self._buffers_of.items()
        return {name: tuple(map(self.get_buffer, buffers)) for name, buffers in own}

    def _begun(self) -> Ascent:
        if self._ascent is None:
            raise GuideError("CAVIGuide has no factors before it begins on data. Fit it first.")
        return self._ascent


register_swept_guide("cavi", CAVIGuide)
