"""Flows and structured guides: their densities, and what they say where zuko is missing."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vi import fit
from ppl_vi.guides import FlowGuide, MixtureGuide, StructuredGuide
from ppl_vi.preparation import structure_of
from ppl_vi.program import Pair, draw_plainly, run

pytest.importorskip("zuko")


def plane(dim):
    def model():
        u = pyro.sample("u", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(u.sum(-1), 2.0), obs=torch.tensor(1.0))

    return model


def evidence(dim):
    return dist.Normal(0.0, (4.0 + dim) ** 0.5).log_prob(torch.tensor(1.0))


def off_its_start(guide, noise):
    """In units of the prior, and every parameter moved."""
    guide()
    guide.factor.fill_(1.0)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            of_weights = (
                5.0 if isinstance(guide, FlowGuide) else 0.5
            )  # which are in units of 0.1 there
            own = noise * (of_weights if "weights" in name else 1.0)
            parameter.add_(own * torch.randn_like(parameter))
    return guide


def weights(model, guide, count):
    """log p(x, z) - log q(z): ``[count]``."""
    pair = Pair(model, guide, (), {})
    with torch.no_grad():
        return run(structure_of(pair), pair, draw_plainly, count).log_weights()


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (MixtureGuide, {"num_components": 3}),
        (FlowGuide, {"num_components": 2}),
        (FlowGuide, {"kind": "affine"}),
        (StructuredGuide, {}),
    ],
    ids=str,
)
def test_the_weights_of_draws_are_honest(family, settings, dim):
    """E_q[p r / q] = p(x), whatever the parameters: ten means at 4 standard errors."""
    torch.set_default_dtype(torch.float64)
    try:
        model = plane(dim)
        guide = off_its_start(family(model, **settings), 0.15)
        ratio = (weights(model, guide, 20_000) - evidence(dim)).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(ratio) ** 0.5
        assert 1e-3 < ratio.std() < 5  # it is off, and not so far that the mean is nothing
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (FlowGuide, {"num_components": 2}),
        (FlowGuide, {"kind": "affine", "num_components": 2}),
        (StructuredGuide, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_density_of_a_draw_is_that_of_its_value(family, settings, dim):
    torch.set_default_dtype(torch.float64)
    try:
        guide = off_its_start(family(plane(dim), **settings), 0.3)
        trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
        own = [
            site
            for name, site in trace.nodes.items()
            if name.startswith(f"_{family.__name__}") and site["type"] == "sample"
        ]
        e, drawn = own[-1]["value"].detach(), sum(site["log_prob"].sum() for site in own)
        torch.testing.assert_close(guide.distribution().log_prob(e), drawn)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("family", [FlowGuide, StructuredGuide])
@pytest.mark.parametrize("dim", [2, 5])
def test_the_volume_is_that_of_the_jacobian(family, dim):
    torch.set_default_dtype(torch.float64)
    try:
        guide = off_its_start(family(plane(dim)), 0.3)
        (map_,) = guide.distribution().transforms
        x = torch.randn(dim)
        jacobian = torch.autograd.functional.jacobian(map_, x)
        volume = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(map_.log_abs_det_jacobian(x, map_(x)), volume)
        torch.testing.assert_close(map_.inv(map_(x).clone()), x)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_structured_guide_starts_exact_where_the_posterior_is_gaussian():
    result = fit(plane(2), "structured", steps=1, optimizer=still, seed=0, progress=False)
    assert abs(result.elbo - evidence(2)) < 0.02


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_without_zuko_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install zuko"):
        fit(plane(2), "flow", steps=1, progress=False)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (FlowGuide, {"kind": "round"}, "kind must be 'spline' or 'affine'"),
        (FlowGuide, {"num_transforms": 0}, "num_transforms must be a positive integer"),
    ],
    ids=str,
)
def test_bad_settings(family, settings, message):
    with pytest.raises(ValueError, match=message):
        family(plane(2), **settings)
