"""Find the structure of a model/guide pair by running each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from math import inf
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from ppl_vi.errors import ModelError
from ppl_vi.program.checks import (
    check_draw,
    check_guide_sites,
    check_plate,
    check_scaled,
)
from ppl_vi.program.layout import innermost, plate_frames
from ppl_vi.program.messengers import VisitSites
from ppl_vi.program.model_checks import check_declared, check_observed
from ppl_vi.program.structure import Kind, Plate, Site, Structure
from ppl_vi.program.tracing import (
    Pair,
    draw_plainly,
    drawn_values,
    factor_sites,
    sample_sites,
    trace_guide,
    trace_model,
)
from ppl_vi.program.vectorization import choose_particles
from ppl_vi.randomness import forked_rng

_WRONG_PATHS = ("MixtureOfDiagNormals",)
"""Families of Pyro 1.9 whose reparameterized draw has a wrong gradient, in the logits here."""


def inspect(pair: Pair) -> Structure:
    """Run the guide and the model once and describe their sites; random state is left as it was.

    Raises:
        GuideError: the guide fails, misses a latent, has an extra one, draws an observed one, or
            has another support or shape than the model.
        ModelError: the model fails, has no latent, or its observations do not fit a site.
    """
    # Gradients tell which supports move, even where the caller has turned them off.
    with forked_rng(), torch.enable_grad():
        if isinstance(pair.guide, AutoGuide):
            # It runs the model out of sight of all handlers. Meet frozen parameters before it does.
            with suppress(ValueError, RuntimeError):
                trace_model(pair, {})
        guide_trace = trace_guide(pair, draw_plainly)
        guide_sites = factor_sites(guide_trace)
        with VisitSites(_checked_against(guide_trace)):
            model_trace = trace_model(pair, drawn_values(guide_trace))
        model_sites = sample_sites(model_trace)
        sites = _describe(guide_sites, model_sites)
        check_guide_sites(guide_sites, model_sites)
        check_scaled(guide_sites, model_sites)
        check_declared(model_sites, "the model")
        check_declared(guide_sites, "the guide")
        check_observed(model_sites)
        if not any(site.kind in ("latent", "auxiliary", "marginalized") for site in sites.values()):
            raise ModelError(
                "the model has no latent site, so there is nothing to infer: every pyro.sample is "
                "observed. Give an unknown a prior with pyro.sample(name, distribution)."
            )
        traced = [*guide_sites.values(), *model_sites.values()]
        return choose_particles(_structure(sites, traced), pair)


def families(pair: Pair) -> dict[str, str]:
    """The class name of each site's distribution in the model, at draws of the guide.

    Random state is left as it was.
    """
    with forked_rng(), torch.no_grad(), pyro.validation_enabled(False):
        drawn = drawn_values(trace_guide(pair, draw_plainly))
        sites = sample_sites(trace_model(pair, drawn))
    return {name: type(innermost(site["fn"])).__name__ for name, site in sites.items()}


def inspect_model(pair: Pair) -> Structure:
    """Run the model alone and describe its sites: those that are not observed count as summed out.

    Random state is left as it was.

    Raises:
        ModelError: the model fails.
    """
    with forked_rng(), torch.no_grad(), pyro.validation_enabled(False):
        sites = sample_sites(trace_model(pair, {}))
    return _structure(_describe({}, sites), sites.values())


def _structure(sites: Mapping[str, Site], traced: Iterable[Mapping[str, Any]]) -> Structure:
    """With the plates of the traced sites; particles run one by one."""
    frames = [frame for site in traced for frame in plate_frames(site)]
    plates = {f.name: Plate(f.name, f.dim, f.size, f.full_size or f.size) for f in frames}
    nesting = max((-frame.dim for frame in frames), default=0)
    return Structure(sites, plates, nesting, "loop", "loop")


def _checked_against(guide_trace: Any) -> Callable[[str, Any], None]:
    """Check a draw where the model meets it: there a wrong one is still told from its consequences."""

    def check(name: str, site: Any) -> None:
        drawn = guide_trace.nodes.get(name)
        if drawn is None or drawn["type"] != "sample":
            return
        if site_is_subsample(site):
            check_plate(name, drawn, site)
        elif not (site["is_observed"] or drawn["is_observed"]):
            check_draw(name, drawn, site)

    return check


def _describe(guide_sites: Mapping[str, Any], model_sites: Mapping[str, Any]) -> dict[str, Site]:
    auxiliary = {
        name: _site(name, "auxiliary", site)
        for name, site in guide_sites.items()
        if name not in model_sites and not site["is_observed"]
    }
    described = {}
    for name, site in model_sites.items():
        if name in guide_sites:
            described[name] = _site(name, "latent", guide_sites[name])
        elif site["infer"].get("_deterministic"):
            described[name] = _site(name, "deterministic", site)
        elif site["is_observed"]:
            described[name] = _site(name, "observed", site)
        else:
            described[name] = _site(name, "marginalized", site)
    return {**auxiliary, **described}


def _site(name: str, kind: Kind, site: Mapping[str, Any]) -> Site:
    distribution: TorchDistribution = site["fn"]
    base = innermost(distribution)
    frames, value = plate_frames(site), site["value"]
    event_dim = distribution.event_dim
    if kind == "deterministic":
        # By default Pyro takes the whole value as the event, plates included: tell them apart.
        depth = max((-frame.dim for frame in frames), default=0)
        event_dim = value.dim() - depth if event_dim == value.dim() else event_dim
        fits = 0 <= event_dim <= value.dim() - depth
        fits = fits and all(value.shape[f.dim - event_dim] == f.size for f in frames)
        frames, event_dim = (frames, event_dim) if fits else ([], value.dim())
    return Site(
        name=name,
        kind=kind,
        plates=tuple(frame.name for frame in frames),
        shape=distribution.shape() if kind == "observed" else value.shape,  # values may broadcast
        event_dim=event_dim,
        dtype=value.dtype,
        support=distribution.support,
        distribution=type(base).__name__,
        reparameterizable=bool(distribution.has_rsample)
        and type(base).__name__ not in _WRONG_PATHS,
        enumerable=bool(distribution.has_enumerate_support),
        support_size=_support_size(base),
        elements=distribution.event_shape.numel() // max(1, base.event_shape.numel()),
        fixed=isinstance(base, Delta),
        moving_support=_support_moves(base, value),
    )


def _support_size(base: Any) -> int:
    try:
        return len(base.enumerate_support(expand=False)) if base.has_enumerate_support else 0
    except NotImplementedError:  # elements with supports of different sizes
        return 0


def _support_moves(distribution: Any, value: Tensor) -> bool:
    """Whether a trainable parameter moves an end of the support.

    Behind a transform torch calls the transform's codomain the support, which is the whole line for an
    affine one. So send the ends of the base through the transforms, and see what they depend on.
    """
    if not _is_transformed(distribution):
        return any(isinstance(end, Tensor) and end.requires_grad for end in _bounds(distribution))
    # A transform of the user's own may refuse the infinite.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        return any(_depends(end) for end in _ends(distribution, value))
    return False


def _is_transformed(distribution: Any) -> bool:
    """Whether it has the general support of transformed distributions, none that it knows better."""
    return getattr(type(distribution), "support", None) is TransformedDistribution.support


def _bounds(distribution: Any) -> tuple[Any, Any]:
    support = _unwrapped(distribution.support)
    return getattr(support, "lower_bound", -inf), getattr(support, "upper_bound", inf)


def _unwrapped(constraint: Any) -> Any:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _ends(distribution: Any, value: Tensor) -> list[Tensor]:
    """The lower and the upper ends of the support, sent through all transforms; infinite for none."""
    shape = distribution.batch_shape + distribution.event_shape
    distribution = innermost(distribution)
    if _is_transformed(distribution):
        through = ComposeTransform(distribution.transforms)
        return [_image(through, end) for end in _ends(distribution.base_dist, value)]
    return [torch.as_tensor(end).to(value).expand(shape) for end in _bounds(distribution)]


def _image(transform: Any, end: Tensor) -> Tensor:
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            end = _image(part, end)
        return end
    if isinstance(transform, IndependentTransform):
        return _image(transform.base_transform, end)
    if isinstance(transform, torch.nn.Module):
        return end  # a flow bends the line, but keeps its ends; calling it might change its state
    image: Tensor = transform(end)
    if _unwrapped(transform.codomain) is constraints.real:
        # Where a bounded domain becomes the whole line, torch stops just short of the infinite.
        domain = _unwrapped(transform.domain)
        at_edge = end == getattr(domain, "lower_bound", -inf)
        at_edge = at_edge | (end == getattr(domain, "upper_bound", inf))
        image = image.masked_fill(at_edge, inf)
    return image if image.isfinite().any() else image.detach()


def _depends(end: Tensor) -> bool:
    """Whether a finite element changes with a parameter: 0 · scale does not."""
    finite = end[end.isfinite()]
    if not finite.requires_grad:
        return False
    leaves, nodes, seen = [], [finite.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [source for source, _ in node.next_functions]
            leaves += [node.variable] if hasattr(node, "variable") else []
    # Unequal weights, lest the gradients of several elements cancel.
    weighted = (finite * torch.rand_like(finite)).sum()
    gradients = torch.autograd.grad(weighted, leaves, retain_graph=True)
    # A logarithm or a power of an end may have the slope 0 · inf, at a place that does not move.
    return any(bool(gradient.nan_to_num(nan=0.0).any()) for gradient in gradients)
