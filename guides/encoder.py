"""Amortized inference: a network maps a batch of data to the factors of its local latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
from torch import Tensor, nn

from ppl_vi.errors import GuideError
from ppl_vi.guides.gaussian_factor import GaussianFactor
from ppl_vi.guides.refinement import Refinement
from ppl_vi.guides.unconstrained import check_supports
from ppl_vi.networks import called
from ppl_vi.preparation import shapes_of
from ppl_vi.program import (
    Latents,
    LatentSite,
    Pair,
    distribution_of,
    log_joint_of,
    look_at_latents,
    run_inside,
    unheard,
)

Program = Callable[..., Any]


class EncoderGuide:
    """q(z | x) = Normal(m(x), S(x)) for each row x, with a network for m and S.

    It serves a local latent of any model: plates and support are found from the model, and a latent
    with a constrained support is a Gaussian in unconstrained space. The network is called with what
    the model is called with, the rows of a subsample picked out, and returns ``(loc, scale)``:

        loc    [*plates, *event]
        scale  [*plates, *event], standard deviations, or
               [*plates, D, D] of an event of D entries, a lower Cholesky factor of the covariance.

    Other latents are left to another guide, which ``fit`` builds from its name.

    Args:
        network: any module or function.
        latent: the site it serves.
        rest: the guide of all other latents: whatever ``fit(guide=...)`` takes, another
            ``EncoderGuide`` too; ``None`` for none. A name or a class is not used where there are no
            others.
        refinement: steps for each datum from the network's output; ``None`` for none.

    Raises:
        GuideError: before the first step, where the model has no such latent or the network's output
            has a wrong shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.guides import EncoderGuide
        >>> from ppl_vi.models import VAE
        >>> from ppl_vi.networks import perceptron_encoder
        >>> images = torch.randint(2, (50, 8, 8)).float()
        >>> guide = EncoderGuide(perceptron_encoder((8, 8), 2, hidden=[16]))
        >>> result = fit(VAE((8, 8), 2, hidden=[16]), guide, images, batch_size=25, steps=20,
        ...              seed=0, progress=False)
        >>> result.guide.posterior(images[:3]).mean.shape
        torch.Size([3, 2])

    Source: Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014).
    """

    def __init__(
        self,
        network: Callable[..., Any],
        latent: str = "z",
        *,
        rest: Any = "normal",
        refinement: Refinement | None = None,
    ) -> None:
        if not callable(network):
            raise TypeError(
                f"network must be a module or a function from data to (loc, scale), not {network!r}."
            )
        if not isinstance(latent, str):
            raise TypeError(
                f"latent must be the name of one site, not {latent!r}. Give each further latent an "
                f"EncoderGuide of its own, with rest=."
            )
        self.network, self.rest, self.refinement = network, rest, refinement
        self.drawn: tuple[str, ...] = (latent,)

    def __repr__(self) -> str:
        return f"EncoderGuide({type(self.network).__name__}, latent={self.drawn[0]!r})"

    def completed(self, model: Program, rest: Program | None = None) -> EncodedGuide:
        """The Pyro guide for a model; ``fit`` asks for it.

        Args:
            model: a Pyro model.
            rest: the Pyro guide of its other latents, if it has any.
        """
        return EncodedGuide(self, model, rest)


class EncodedGuide(nn.Module):
    """The Pyro guide that an ``EncoderGuide`` becomes with a model.

    Args:
        plan: what was asked for.
        model: the Pyro model.
        rest: the guide of other latents; None where there are none.
    """

    def __init__(self, plan: EncoderGuide, model: Program, rest: Program | None) -> None:
        super().__init__()
        self.network, self.refinement = plan.network, plan.refinement
        (self.latent,) = plan.drawn
        self.rest = rest
        self._of = {"model": model}  # not a submodule: its parameters are the model's own
        self._seen: dict[Any, Latents] = {}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Draw all latents."""
        if isinstance(self.network, nn.Module):
            pyro.module(f"encoder_{self.latent}", self.network)
        others = {} if self.rest is None else run_inside(self.rest, args, kwargs)
        known, is_new = self._latents(args, kwargs)
        site = self._site(known)
        with ExitStack() as stack:
            rows: dict[str, Tensor] = {}
            for plate in site.plates:
                rows[plate.name] = stack.enter_context(_plate(plate, others.get(plate.name)))
            own = _rows_of(site, rows, (args, kwargs))
            role = f"EncoderGuide(latent='{self.latent}'): the network"
            output = called(self.network, role, GuideError, *own[0], **own[1])
            factor = GaussianFactor(site, output, is_new)
            if self.refinement is not None:
                joint = log_joint_of(self._of["model"], args, kwargs, known)
                factor.refine(self.refinement, joint, {**rows, **others}, known)
            pyro.sample(self.latent, factor.distribution)

    def posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the latent on these data, ``[*plates]`` of ``[*event]``.

        Args:
            *args: the model's arguments.
            **kwargs: the model's keyword arguments.
        """
        return distribution_of(self, self.latent, args, kwargs)

    def _latents(self, args: Any, kwargs: Any) -> tuple[Latents, bool]:
        """The model's latents on these shapes, looked up once; and whether this was the first time."""
        model = self._of["model"]
        shapes = shapes_of(Pair(model, self, args, kwargs))
        is_new = shapes not in self._seen
        if is_new:
            check_supports(model, args, kwargs, [self.latent])
            self._seen[shapes] = look_at_latents(model, args, kwargs)
        return self._seen[shapes], is_new

    def _site(self, known: Latents) -> LatentSite:
        sites = {site.name: site for site in known.sites}
        if self.latent not in sites:
            names = ", ".join(f"'{name}'" for name in sites) or "none"
            raise GuideError(
                f"EncoderGuide(latent='{self.latent}'): the model has no such latent. Name one of its "
                f"latents ({names})."
            )
        site = sites[self.latent]
        if site.enumerable or site.support.is_discrete:
            raise GuideError(
                f"site '{self.latent}': EncoderGuide draws continuous latents, and {site.prior} is "
                f"discrete. Leave the site out, so that it is summed out."
            )
        return site


def _plate(plate: Any, rows: Tensor | None) -> Any:
    """The plate of the model, with the rows that another part of the guide has met already."""
    if rows is None:
        return pyro.plate(plate.name, plate.full_size, subsample_size=plate.size, dim=plate.dim)
    with unheard():  # a trace takes the same row numbers only once
        return pyro.plate(plate.name, plate.full_size, subsample=rows, dim=plate.dim)


def _rows_of(site: LatentSite, rows: Mapping[str, Tensor], arguments: Any) -> Any:
    """The arguments, with the rows of subsampled plates picked from tensors that hold all of them."""
    for plate in site.plates:
        if plate.size == plate.full_size:
            continue

        def pick(leaf: Any, full: int = plate.full_size, own: Tensor = rows[plate.name]) -> Any:
            whole = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == full
            return leaf.index_select(0, own.to(leaf.device)) if whole else leaf

        args, kwargs = arguments
        arguments = tuple(map(pick, args)), {name: pick(leaf) for name, leaf in kwargs.items()}
    return arguments
