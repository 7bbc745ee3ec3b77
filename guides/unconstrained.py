"""What all guides share that draw latents in unconstrained space, from where their posterior is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.nn.module import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import biject_to

from ppl_vi.errors import GuideError
from ppl_vi.program import moving_supports, unheard
from ppl_vi.starts import GuideStart

_DRAWS_FOR_A_MEDIAN = 1_001


@dataclass(frozen=True)
class Unconstrained:
    """A latent site of the model, seen from unconstrained space.

    Attributes:
        name: of the site.
        transform: to its support.
        start: where it starts, ``[*plates, *event]``, unconstrained, of the rows at hand.
        event_dim: of the unconstrained value.
        value_event_dim: of the site's own.
        frames: its plates.
    """

    name: str
    transform: Any
    start: Tensor
    event_dim: int
    value_event_dim: int
    frames: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, site: Mapping[str, Any]) -> Unconstrained:
        """Read it off a traced site.

        Raises:
            GuideError: the site is discrete, and not finite either.
        """
        distribution, value = site["fn"], site["value"].detach()
        if distribution.support.is_discrete:
            raise GuideError(
                f"site '{name}' is discrete with infinitely many values, which this guide cannot draw "
                f"and nobody can sum out. Draw it in a guide of your own."
            )
        transform = biject_to(distribution.support)
        start = transform.inv(value).detach()
        event_dim = distribution.event_dim + start.dim() - value.dim()
        frames = tuple(site["cond_indep_stack"])
        return cls(name, transform, start, event_dim, distribution.event_dim, frames)

    @property
    def subsampled(self) -> bool:
        """Whether only some of its rows are at hand."""
        return any((frame.full_size or frame.size) != frame.size for frame in self.frames)

    def whole(self, tensor: Tensor) -> Tensor:
        """``[*plates, *event]`` of all rows, those of the rows at hand repeated."""
        for frame in self.frames:
            size, dim = frame.full_size or frame.size, frame.dim - self.event_dim
            if size != frame.size:
                rows = torch.arange(size, device=tensor.device) % max(1, frame.size)
                tensor = tensor.index_select(dim, rows)
        return tensor.contiguous()

    def log_density(self, unconstrained: Tensor, value: Tensor) -> Tensor:
        """``[*plates]``: the log of |du / dvalue|, what the transform does to a density."""
        found = -self.transform.log_abs_det_jacobian(unconstrained, value)
        summed: Tensor = sum_rightmost(found, found.dim() - value.dim() + self.value_event_dim)
        return summed


class _AbstractModule(type(AutoGuide), ABCMeta):  # type: ignore[misc]
    """Pyro's modules have a metaclass of their own, which abstract classes must join."""


class UnconstrainedGuide(AutoGuide, metaclass=_AbstractModule):
    """The continuous latents of a model, drawn in unconstrained space and sent to their supports.

    It starts where ``start_at`` says, which ``fit`` calls with the place and the widths that it found
    for the posterior; without it, at the prior's medians. Finite discrete latents are left out, for
    ``fit`` to sum out. Latents in the plates of minibatches have a Normal each, the others what the
    subclass gives them.

    Args:
        model: a Pyro model.
        create_plates: plates over all rows, as of Pyro's autoguides; ``fit`` gives it.
    """

    create_plates: Callable[..., Any] | None

    spread: ClassVar[bool] = True
    """Whether latents in the plates of minibatches have a width, or stand at a point."""

    def __init__(
        self, model: Callable[..., Any], *, create_plates: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        self._program = (model,)
        self._start = GuideStart(init_to_median(num_samples=_DRAWS_FOR_A_MEDIAN))
        self._latents: dict[str, Unconstrained] = {}
        self._apart: tuple[str, ...] = ()

    @property
    def started(self) -> bool:
        """Whether it was called before, and has its parameters."""
        return self.prototype_trace is not None

    def start_at(self, start: GuideStart) -> None:
        """Begin there, when first called."""
        self._start = start
        if self.create_plates is None:
            self.create_plates = start.create_plates

    @abstractmethod
    def _stands_apart(self, latent: Unconstrained, rows: frozenset[str]) -> bool:
        """Whether the latent has Normals of its own, given the plates of minibatches."""

    @abstractmethod
    def _draw_together(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The unconstrained values of the other latents, and log |de / du| of each number."""

    def _prototype_hide_fn(self, msg: Any) -> bool:
        hidden: bool = AutoGuide._prototype_hide_fn(msg) or msg["fn"].has_enumerate_support
        return hidden

    def _initial(self, site: Any) -> Tensor:
        distribution = site["fn"]
        discrete = distribution.has_enumerate_support
        value: Tensor = distribution.sample() if discrete else self._start.init_loc_fn(site)
        return value

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self._model = (InitMessenger(self._initial)(self._program[0]),)
        super()._setup_prototype(*args, **kwargs)
        nodes = dict(self.prototype_trace.iter_stochastic_nodes())
        check_supports(self._program[0], args, kwargs, tuple(nodes))
        self._latents = {name: Unconstrained.of(name, site) for name, site in nodes.items()}
        rows = self._row_plates(*args, **kwargs)
        self._apart = tuple(n for n, v in self._latents.items() if self._stands_apart(v, rows))
        self._set_up_apart()

    def _row_plates(self, *args: Any, **kwargs: Any) -> frozenset[str]:
        if self.master is not None:
            return frozenset(self.master().plates)
        if self.create_plates is None:
            return frozenset()
        with unheard():  # the plates of this run are made later
            plates = self.create_plates(*args, **kwargs)
        plates = [plates] if isinstance(plates, pyro.plate) else plates
        return frozenset(plate.name for plate in plates)

    def _set_up_apart(self) -> None:
        """Parameters of the latents that stand apart, in units of their widths."""
        if not self._apart:
            return
        self.centers, self.widths = PyroModule(), PyroModule()
        self.locs, self.scales = PyroModule(), PyroModule()
        for name in self._apart:
            latent = self._latents[name]
            center, width, scale = (latent.whole(v) for v in self._known(latent))
            set_nested(self.centers, name, center)
            set_nested(self.widths, name, width)
            zero, positive = torch.zeros_like(center), constraints.softplus_positive
            set_nested(self.locs, name, PyroParam(zero, constraints.real, latent.event_dim))
            if self.spread:
                set_nested(self.scales, name, PyroParam(scale, positive, latent.event_dim))

    def _known(self, latent: Unconstrained) -> tuple[Tensor, Tensor, Tensor]:
        """Where a latent starts, in which unit, and how wide in it."""
        one, found = torch.ones_like(latent.start), self._start.whitening
        if found is None or latent.name not in found.sizes:
            return latent.start, one, one * self._start.init_scale
        location, widths = (
            found.by_site(vector)[latent.name].to(one).reshape(one.shape)
            for vector in (found.location, found.widths())
        )
        return location, widths, one

    def _own(self, name: str) -> tuple[Tensor, Tensor]:
        """Location and width of a latent apart; inside its plates, of the rows at hand."""
        event_dim = self._latents[name].event_dim
        center, width = (
            pyro.subsample(nested(module, name), event_dim=event_dim)
            for module in (self.centers, self.widths)
        )
        scale = width * nested(self.scales, name) if self.spread else torch.zeros_like(width)
        return center + width * nested(self.locs, name), scale

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents, inside their plates; the draws by site."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        together = self._draw_together() if len(self._apart) < len(self._latents) else {}
        plates = self._create_plates(*args, **kwargs)
        drawn = {}
        for name, latent in self._latents.items():
            with ExitStack() as stack:
                for frame in latent.frames:
                    stack.enter_context(plates[frame.name])
                if name in together:
                    unconstrained, log_volume = together[name]
                else:
                    unconstrained, log_volume = self._draw_apart(name), None
                drawn[name] = self._send(latent, unconstrained, log_volume)
        return drawn

    def _draw_apart(self, name: str) -> Tensor:
        location, scale = self._own(name)
        if not self.spread:
            return location
        normal = dist.Normal(location, scale).to_event(self._latents[name].event_dim)
        value: Tensor = pyro.sample(f"{name}_unconstrained", normal, infer={"is_auxiliary": True})
        return value

    def _send(
        self, latent: Unconstrained, unconstrained: Tensor, log_volume: Tensor | None
    ) -> Tensor:
        """Put a latent on its support; inside its plates."""
        value = latent.transform(unconstrained)
        log_density = self._log_density(latent, unconstrained, value)
        if log_volume is not None:
            log_density = log_density + sum_rightmost(log_volume, latent.event_dim)
        point = dist.Delta(value, log_density, event_dim=latent.value_event_dim)
        sent: Tensor = pyro.sample(latent.name, point)
        return sent

    def _log_density(
        self, latent: Unconstrained, unconstrained: Tensor, value: Tensor
    ) -> Tensor | float:
        """``[*plates]``: what sending a draw to its support does to its density."""
        return latent.log_density(unconstrained, value)

    @abstractmethod
    def _quantiles_together(self, probabilities: Tensor) -> dict[str, Tensor]:
        """``[quantiles, *plates, *event]``, unconstrained, of the latents that do not stand apart."""

    @torch.no_grad()
    def quantiles(self, quantiles: Iterable[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The quantiles of each number in unconstrained space, sent to the supports.

        Args:
            quantiles: probabilities between 0 and 1.
            *args: the model's; not used.
            **kwargs: likewise.

        Returns:
            ``[quantiles, *plates, *event]`` by site; in the plates of minibatches of all rows.
        """
        if self.prototype_trace is None:
            with unheard():
                self._setup_prototype(*args, **kwargs)
        if not self._latents:
            return {}
        first = next(iter(self._latents.values())).start
        probabilities = torch.as_tensor(quantiles, dtype=first.dtype, device=first.device)
        found = self._quantiles_together(probabilities)
        for name in self._apart:
            with unheard():
                location, scale = self._own(name)
            standard = dist.Normal(torch.zeros_like(scale), 1.0)
            at = standard.icdf(probabilities.reshape(-1, *(1,) * scale.dim()))
            found[name] = location + scale * at
        return {name: latent.transform(found[name]) for name, latent in self._latents.items()}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The medians of each number in unconstrained space, sent to the supports, by site."""
        return {name: v[0] for name, v in self.quantiles([0.5], *args, **kwargs).items()}


def check_supports(model: Any, args: Any, kwargs: Any, drawn: Collection[str]) -> None:
    """Raise a GuideError where the support of a latent that is drawn depends on another latent."""
    for name in moving_supports(model, args, kwargs):
        if name in drawn:
            raise GuideError(
                f"site '{name}': its support depends on other latents, and this guide draws it on a "
                f"fixed one. Draw it on a fixed support in the model and move that (share ~ "
                f"Uniform(0, 1), {name} = end * share), or write a guide of your own."
            )


def nested(module: Any, name: str) -> Any:
    """The attribute of a module that a site's name stands for, which may have dots."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def set_nested(module: Any, name: str, value: Any) -> None:
    """Set the attribute that a site's name stands for: a buffer of a tensor."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            setattr(module, part, PyroModule())
        module = getattr(module, part)
    if isinstance(value, Tensor):
        module.register_buffer(last, value)
    else:
        setattr(module, last, value)
