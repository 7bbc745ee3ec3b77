"""The VAE: NumPyro's bound and gradient, the exact optimum of a linear one, its data, its options."""

# ruff: noqa: N806 (the names of the equations)

import math

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from ppl_vi import ELBO, DataError, ModelError, fit
from ppl_vi.drawing import draw_with
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE
from ppl_vi.networks import (
    convolutional_decoder,
    convolutional_encoder,
    perceptron_decoder,
    perceptron_encoder,
)
from ppl_vi.preparation import prepare
from ppl_vi.program import Pair

N, PIXELS, SIZE, S = 7, 12, 3, 4


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(likelihood, shape=(PIXELS,), num_rows=N):
    if likelihood == "gaussian":
        return torch.randn(num_rows, *shape)
    ints = torch.randint(2 if likelihood == "bernoulli" else 5, (num_rows, *shape))
    return ints if likelihood == "categorical" else ints.to(torch.get_default_dtype())


def encoder_of(likelihood, covariance="diagonal"):
    network = perceptron_encoder((PIXELS,), SIZE, [6], covariance)
    return network if likelihood != "categorical" else nn.Sequential(Floats(), network)


class Floats(nn.Module):
    def forward(self, x):
        return x.to(torch.get_default_dtype())


LIKELIHOODS = ("bernoulli", "gaussian", "categorical")
PRIORS = ("normal", "learned", "mixture")
CASES = [("bernoulli", "normal"), ("gaussian", "mixture"), ("categorical", "learned")]
SAMPLED = [pytest.param(*case, False, marks=pytest.mark.slow) for case in CASES[1:]]


@pytest.mark.parametrize(
    ("likelihood", "prior", "analytic"),
    [*((*case, True) for case in CASES), (*CASES[0], False), *SAMPLED],
)
def test_the_bound_and_its_gradient_are_numpyros(twins, likelihood, prior, analytic):
    """On the same draws, with the same weights; both sides in float64."""
    import jax

    options = {"num_categories": 5, "num_components": 2}
    model = VAE((PIXELS,), SIZE, likelihood=likelihood, prior=prior, hidden=[5], **options)
    guide = EncoderGuide(encoder_of(likelihood)).completed(model)
    x, objective = images(likelihood), ELBO(S, analytic=analytic)
    pair = Pair(model, guide, (x,), {})
    ready = prepare(objective, pair)
    for _, parameter in pyro.get_param_store().named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.grad = None
    pyro.set_rng_seed(5)
    with torch.no_grad():
        z = draw_with(ready, pair).latents["z"]
        q = guide.posterior(x)
        noise = ((z.value - q.base_dist.loc) / q.base_dist.scale).numpy()
    pyro.set_rng_seed(5)
    loss = objective.differentiable_loss(model, guide, x)
    loss.backward()
    named = dict(pyro.get_param_store().named_parameters())
    start = {name: p.detach().numpy().copy() for name, p in named.items()}
    closed = ("entropy" if prior == "mixture" else True) if analytic else False
    theirs = twins.vae_bound(x.numpy(), noise, likelihood, prior, closed)
    value, gradient = jax.jit(jax.value_and_grad(theirs))(start)
    assert -loss.item() == pytest.approx(float(value), rel=1e-10)
    for name, parameter in named.items():
        ours, exact = parameter.grad.numpy(), -np.asarray(gradient[name])
        assert np.abs(ours - exact).max() < 1e-9 * max(1.0, np.abs(exact).max()), name


@pytest.mark.slow
def test_the_linear_one_is_probabilistic_principal_components(float64):
    """The maximum of log p over W, b and noise is known (Tipping and Bishop 1999); so is p(z | x)."""
    rows, features, size = 400, 6, 2
    W = torch.randn(features, size) @ torch.diag(torch.tensor([2.0, 1.0]))
    x = torch.randn(rows, size) @ W.T + 0.5 * torch.randn(rows, features) + 1.0
    model = VAE((features,), size, likelihood="gaussian", hidden=[])
    guide = EncoderGuide(perceptron_encoder((features,), size, []))
    result = fit(model, guide, x, steps=2_500, seed=0, progress=False)

    values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / rows).flip(0)
    noise = values[size:].mean()
    spread = values[:size].log().sum() + (features - size) * noise.log()
    best = -0.5 * (features * math.log(2 * math.pi) + spread + features)

    linear = model.decoder[0][0]
    learned, b = linear.weight.detach(), linear.bias.detach()
    variance = result.params["noise"] ** 2
    covariance = learned @ learned.T + variance * torch.eye(features)
    evidence = torch.distributions.MultivariateNormal(b, covariance).log_prob(x).mean()
    assert best - 0.01 < evidence <= best + 1e-9
    assert best - 0.01 < result.elbo / rows < best + 0.01
    exact = (x - b) @ torch.linalg.solve(
        learned.T @ learned + variance * torch.eye(size), learned.T
    ).T
    found = result.guide.posterior(x).mean
    assert (found - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_option_and_the_closed_form_agrees_with_draws(likelihood, prior):
    """Within 4 standard errors: one false alarm in 16,000 for each."""
    model = VAE((PIXELS,), SIZE, likelihood=likelihood, prior=prior, hidden=[5], num_categories=5)
    x, guide = images(likelihood), EncoderGuide(encoder_of(likelihood))
    result = fit(model, guide, x, steps=2, seed=0, progress=False)
    pair = result.job.pair(result.job.source.whole())
    with result.fitted.applied():
        bounds = []
        for analytic in (True, False):
            objective = ELBO(2_000, analytic=analytic)
            bounds.append(-objective.loss(pair.model, pair.guide, *pair.args))
    error = result.elbo.standard_error * (1_000 / 2_000) ** 0.5
    assert abs(bounds[0] - bounds[1]) < 4 * 2**0.5 * error


@pytest.mark.parametrize("shape", [(8, 8), (1, 7, 5)])
def test_images_and_convolutions(shape):
    model = VAE(shape, 2, decoder=convolutional_decoder(2, shape, [4, 3]))
    guide = EncoderGuide(convolutional_encoder(shape, 2, [3, 4], "full"))
    x = images("bernoulli", shape, 20)
    result = fit(model, guide, x, batch_size=8, steps=3, progress=False)
    assert model.decode(result.guide.posterior(x[:4]).mean).shape == (4, *shape)
    assert result.predict(num_samples=2)["x"].shape == (2, 20, *shape)


def test_784_400_20_can_be_expressed():
    model = VAE((784,), 20, decoder=perceptron_decoder(20, (784,), [400]))
    sizes = [tuple(p.shape) for p in model.parameters()]
    assert sizes == [(400, 20), (400,), (784, 400), (784,)]
    encoder = perceptron_encoder((784,), 20, [400])
    assert [tuple(p.shape) for p in encoder.body.parameters()] == [(400, 784), (400,)]


def test_any_module_is_a_decoder():
    """One that takes batches of rows alone, and one with batch norm, whose buffers the result keeps."""
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, PIXELS))
    model, guide = VAE((PIXELS,), 2, decoder=decoder), perceptron_encoder((PIXELS,), 2, [4])
    result = fit(model, EncoderGuide(guide), images("bernoulli"), steps=3, progress=False)
    assert torch.isfinite(result.losses).all()


def test_eager_and_captured_steps_are_the_same():
    model = VAE((PIXELS,), SIZE, hidden=[5])
    guide, x = EncoderGuide(encoder_of("bernoulli")), images("bernoulli", num_rows=20)
    check_same(model, guide, x, "auto", "captured")


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_eager_and_compiled_steps_are_the_same(covariance):
    model = VAE((PIXELS,), SIZE, hidden=[5])
    guide = EncoderGuide(encoder_of("bernoulli", covariance))
    x = images("bernoulli", num_rows=20)
    check_same(model, guide, x, True, "compiled")


def check_same(model, guide, x, compile, mode):
    start = [p.detach().clone() for p in (*model.parameters(), *guide.network.parameters())]
    results = []
    for wish in (False, compile):
        for p, value in zip((*model.parameters(), *guide.network.parameters()), start, strict=True):
            p.data.copy_(value)
        options = {"batch_size": 8, "steps": 110, "seed": 0, "progress": False}
        results.append(fit(model, guide, x, compile=wish, **options))
    assert results[1].execution.mode == mode
    torch.testing.assert_close(results[0].losses, results[1].losses, rtol=2e-4, atol=1e-3)


GREY = torch.rand(20, PIXELS)
BAD = {
    "grey values": ("bernoulli", GREY, r"must be 0 or 1 .* binarize"),
    "bytes": ("bernoulli", torch.full((20, PIXELS), 255.0), "run from .* to 255"),
    "one bad row": ("bernoulli", torch.cat([torch.zeros(19, PIXELS), GREY[:1]]), "must be 0 or 1"),
    "integers": ("bernoulli", torch.zeros(20, PIXELS).long(), r"Pass x\.float"),
    "shape": ("bernoulli", torch.zeros(20, 3, 4), r"shape \[N, 12\], not \[5, 3, 4\]"),
    "floats": ("categorical", GREY, r"Pass x\.long"),
    "categories": ("categorical", torch.full((20, PIXELS), 256), "integers from 0 to 255"),
    "no tensor": ("gaussian", [["a"]], "numbers|tensor|numeric"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_outside_the_support_are_refused_before_the_first_step(name):
    likelihood, x, said = BAD[name]
    model = VAE((PIXELS,), 2, likelihood=likelihood, hidden=[4])
    guide = EncoderGuide(perceptron_encoder((PIXELS,), 2, [4]))
    with pytest.raises(DataError, match=said):
        fit(model, guide, x, batch_size=5, steps=1, progress=False)


BAD_DECODERS = {
    "input": (
        perceptron_decoder(3, (PIXELS,), []),
        r"decoder \(Sequential\) cannot take .*\[5, 2\]",
    ),
    "output": (perceptron_decoder(2, (7,), []), r"should give rows of shape \[12\], not \[7\]"),
    "dtype": (
        perceptron_decoder(2, (PIXELS,), []).double(),
        r"float64 and was given torch\.float32",
    ),
}


@pytest.mark.parametrize("name", BAD_DECODERS)
def test_decoders_that_do_not_fit_are_named(name):
    decoder, said = BAD_DECODERS[name]
    model, guide = VAE((PIXELS,), 2, decoder=decoder), perceptron_encoder((PIXELS,), 2, [])
    with pytest.raises(ModelError, match=said):
        fit(model, EncoderGuide(guide), images("bernoulli", num_rows=5), steps=1, progress=False)
    with pytest.raises(ModelError, match=said):
        model.decode(torch.zeros(5, 2))


@pytest.mark.parametrize(
    "options", [{"likelihood": "poisson"}, {"prior": "flow"}, {"num_components": 0}]
)
def test_bad_options(options):
    with pytest.raises(ModelError, match=next(iter(options))):
        VAE((PIXELS,), 2, **options)
    with pytest.raises(ModelError, match="size"):
        VAE((PIXELS,), 0)
    with pytest.raises(ValueError, match="needs images"):
        convolutional_encoder((PIXELS,), 2)
    with pytest.raises(ValueError, match="covariance"):
        perceptron_encoder((PIXELS,), 2, covariance="block")
