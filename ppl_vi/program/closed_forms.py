"""Closed forms: a site's log p and log q replaced by their expectations given the site's parents.

Where torch knows the entropy H(q), E_q[log q] = -H(q) takes the place of log q, and where it knows
KL(q || p) too, E_q[log p] = -KL(q || p) - H(q) that of log p. The expectation over the site's own draw
is then exact, whatever the two are scaled by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pyro.distributions import Independent
from pyro.distributions.util import broadcast_shape, sum_rightmost
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vi.program.dependencies import Dependencies, FactorKey, key
from ppl_vi.program.layout import innermost, unexpanded
from ppl_vi.program.run import Batched, Factor, Run
from ppl_vi.program.structure import Structure

ClosedForm = Literal["kl", "entropy"]


def find_closed_forms(
    structure: Structure, dependencies: Dependencies, run: Run
) -> dict[str, ClosedForm]:
    """Which sites of the guide have one, tried on a run.

    A KL needs a prior that does not depend on what the guide draws from the site: its parents in the
    model then count as given.
    """
    factors = {key(factor): factor for factor in run.factors}
    found: dict[str, ClosedForm] = {}
    for name in structure.drawn:
        guide, model = factors["guide", (name,)], factors.get(("model", (name,)))
        if structure.sites[name].fixed or _masked(guide):
            continue
        if not _known(_entropy_of, guide):
            continue
        closed = (
            model is not None
            and _comparable(guide, model)
            and _parents_given(name, dependencies)
            and _known(_divergence_of, guide, model)
        )
        found[name] = "kl" if closed else "entropy"
    return found


def with_closed_forms(run: Run, forms: Mapping[str, ClosedForm], sampled: Collection[str]) -> Run:
    """The run with closed forms in place of sampled factors.

    Args:
        run: as it was drawn.
        forms: by site, as ``find_closed_forms`` found them.
        sampled: sites whose gradient stays that of the sampled factors; only the value is closed.
    """
    factors = {key(factor): factor for factor in run.factors}
    for name, form in forms.items():
        own, prior = ("guide", (name,)), ("model", (name,))
        guide = factors[own]
        closed = {own: -_entropy_of(guide)}
        if form == "kl":
            closed[prior] = closed[own] - _divergence_of(guide, factors[prior])
        for place, value in closed.items():
            if name in sampled:
                drawn = factors[place].log_prob
                value = value.detach() + drawn - drawn.detach()
            factors[place] = replace(factors[place], log_prob=value)
    return replace(run, factors=tuple(factors.values()))


def independent_of_draws(
    dependencies: Dependencies, forms: Mapping[str, ClosedForm]
) -> Dependencies:
    """The dependencies once closed forms no longer depend on the draws of their sites."""
    downstream = dict(dependencies.downstream)
    for name, form in forms.items():
        closed: set[FactorKey] = {("guide", (name,))}
        if form == "kl":
            closed.add(("model", (name,)))
        downstream[name] = downstream[name] - closed
    return replace(dependencies, downstream=downstream)


def _comparable(guide: Factor, model: Factor) -> bool:
    """Whether both stand in the same plates, and none is masked."""
    own, prior = guide.batched, model.batched
    if own is None or prior is None or _masked(model):
        return False
    same_events: bool = own.distribution.event_dim == prior.distribution.event_dim
    return guide.plates == model.plates and same_events


def _masked(factor: Factor) -> bool:
    return factor.batched is not None and factor.batched.masked


def _parents_given(name: str, dependencies: Dependencies) -> bool:
    """Whether the prior of a site depends on nothing that the guide draws from the site."""
    after = dependencies.draws_after(name)
    return not any(("model", (name,)) in dependencies.downstream[site] for site in after)


def _divergence_of(guide: Factor, model: Factor) -> Tensor:
    """``[num_particles, *plates]``, KL(q || p)."""
    own, prior = _batched(guide), _batched(model)
    return own.place(divergence(own.distribution, prior.distribution))


def _entropy_of(guide: Factor) -> Tensor:
    """``[num_particles, *plates]``, the entropy of q."""
    own = _batched(guide)
    return own.place(entropy(own.distribution))


def _batched(factor: Factor) -> Batched:
    if factor.batched is None:
        raise NotImplementedError  # particles ran one by one
    return factor.batched


def divergence(one: Any, other: Any) -> Tensor:
    """KL(one || other), by torch.

    Raises:
        NotImplementedError: torch has no closed form.
    """
    if isinstance(one, Independent) and isinstance(other, Independent):
        dims = one.reinterpreted_batch_ndims
        if dims != other.reinterpreted_batch_ndims:
            raise NotImplementedError
        shapes = one.base_dist.batch_shape, other.base_dist.batch_shape
        parts = divergence(one.base_dist, other.base_dist)
        whole: Tensor = sum_rightmost(parts.expand(broadcast_shape(*shapes)), dims)
        return whole
    if not (_steady(unexpanded(one)) and _steady(unexpanded(other))):
        raise NotImplementedError
    shape = broadcast_shape(one.batch_shape, other.batch_shape)
    # Some of torch's divergences do not broadcast.
    found: Tensor = kl_divergence(*(unexpanded(unexpanded(d).expand(shape)) for d in (one, other)))
    return found.expand(shape)


def entropy(distribution: Any) -> Tensor:
    """The entropy of a distribution, by torch.

    Raises:
        NotImplementedError: torch has no closed form.
    """
    if isinstance(distribution, Independent):
        base = distribution.base_dist
        whole: Tensor = sum_rightmost(entropy(base), distribution.reinterpreted_batch_ndims)
        return whole
    found: Tensor = unexpanded(distribution).entropy()
    return found.expand(distribution.batch_shape)


def _known(closed_form: Callable[..., Tensor], *factors: Factor) -> bool:
    """Whether torch has the closed form, finite and with finite derivatives."""
    try:
        value = closed_form(*factors)
    except NotImplementedError:
        return False
    if not torch.isfinite(value).all():
        return False
    distributions = [factor.batched.distribution for factor in factors if factor.batched]
    every = [tensor for d in distributions for tensor in vars(innermost(d)).values()]
    leaves = [t for t in every if isinstance(t, Tensor) and t.requires_grad]
    if not leaves or not value.requires_grad:
        return True
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True, retain_graph=True)
    return all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


def _steady(distribution: Any) -> bool:
    """Whether transforms, if any, are one-to-one and stay as they are: torch takes that for granted."""
    transforms = getattr(distribution, "transforms", ())
    return all(
        transform.bijective
        and not isinstance(transform, torch.nn.Module)
        and not hasattr(transform, "parts")
        and not any(isinstance(v, Tensor) and v.requires_grad for v in vars(transform).values())
        for transform in transforms
    )
