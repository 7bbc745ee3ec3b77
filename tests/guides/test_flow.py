"""Flows and auxiliary-variable guides: their densities, and what they say where zuko is missing."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vi import fit
from ppl_vi.guides import AuxiliaryGuide, FlowGuide, MixtureGuide
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
            own = noise * (5.0 if "weights" in name else 1.0)
            parameter.add_(own * torch.randn_like(parameter))
    return guide


def weights(model, guide, count):
    """log p(x, z) - log q(z), and with an auxiliary variable + log r: ``[count]``."""
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
        (AuxiliaryGuide, {}),
        (AuxiliaryGuide, {"num_auxiliary": 2}),
    ],
    ids=str,
)
def test_the_weights_of_draws_are_honest(family, settings, dim):
    """E_q[p r / q] = p(x), whatever the parameters: ten means at 4 standard errors."""
    torch.set_default_dtype(torch.float64)
    try:
        model = plane(dim)
        noise = 0.08 if family is AuxiliaryGuide else 0.15
        guide = off_its_start(family(model, **settings), noise)
        ratio = (weights(model, guide, 20_000) - evidence(dim)).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(ratio) ** 0.5
        assert 1e-3 < ratio.std() < 5  # it is off, and not so far that the mean is nothing
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_density_of_a_draw_is_that_of_its_value(kind, dim):
    torch.set_default_dtype(torch.float64)
    try:
        guide = off_its_start(FlowGuide(plane(dim), kind=kind, num_components=2), 0.3)
        trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
        e = trace.nodes["_FlowGuide_of_flow"]["value"].detach()
        drawn = sum(
            site["log_prob"].sum()
            for name, site in trace.nodes.items()
            if name.startswith("_FlowGuide") and site["type"] == "sample"
        )
        torch.testing.assert_close(guide.distribution().log_prob(e), drawn)
        moved = guide._flow()

        def image(x):
            return guide._flow()(x)

        x = torch.randn(dim)
        jacobian = torch.autograd.functional.jacobian(image, x)
        volume = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(moved.log_abs_det_jacobian(x, moved(x)), volume)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_auxiliary_guide_starts_exact_where_the_posterior_is_gaussian():
    model = plane(2)
    result = fit(model, "auxiliary", steps=1, optimizer=still, seed=0, progress=False)
    assert abs(result.elbo - evidence(2)) < 0.02
    with pytest.raises(NotImplementedError, match="only a bound"):
        result.guide.distribution()


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_without_zuko_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-vi\[flows\]'"):
        fit(plane(2), "flow", steps=1, progress=False)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (FlowGuide, {"kind": "round"}, "kind must be 'spline' or 'affine'"),
        (FlowGuide, {"num_transforms": 0}, "num_transforms must be a positive integer"),
        (AuxiliaryGuide, {"num_auxiliary": 0}, "num_auxiliary must be a positive integer"),
    ],
    ids=str,
)
def test_bad_settings(family, settings, message):
    with pytest.raises(ValueError, match=message):
        family(plane(2), **settings)
