"""EncoderGuide: which latents it serves, what it leaves to others, refinement, and what it refuses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vi import ELBO, GuideError, fit
from ppl_vi.guides import EncoderGuide, Refinement
from ppl_vi.networks import convolutional_encoder, perceptron_encoder

N = 30


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """The ELBO that a result tells is of 50 draws, not of 1,000."""
    monkeypatch.setattr("ppl_vi.evaluation._MOST_DRAWS", 50)


def rows():
    return torch.randn(N, 3) + 1.5


def of_batch(x):
    return pyro.plate("data", len(x))


def subsampled(x):
    return pyro.plate("data", N, subsample_size=len(x))


PLATES = {"batch": of_batch, "subsampled": subsampled}


def with_globals(plate):
    """A local latent under two global ones, one of them positive."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        with plate(x):
            z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            seen = torch.cat([z, z[..., :1]], -1)
            pyro.sample("x", dist.Normal(seen, width.unsqueeze(-1)).to_event(1), obs=x)

    return model


def local(plate):
    """A local latent alone."""

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :2])

    return model


SUPPORTS = {
    "real": (lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1), 2),
    "positive": (lambda: dist.LogNormal(torch.zeros(2), 1.0).to_event(1), 2),
    "half line": (lambda: dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1), 2),
    "interval": (lambda: dist.Uniform(-torch.ones(2), 3.0).to_event(1), 2),
    "simplex": (lambda: dist.Dirichlet(torch.ones(3)), 2),
    "matrix": (lambda: dist.Normal(torch.zeros(2, 2), 1.0).to_event(2), (2, 2)),
    "mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 2), 1.0).to_event(1)
        ),
        2,
    ),
}


class Shaped(nn.Module):
    """A network with an event of another shape than a vector."""

    def __init__(self, event, covariance):
        super().__init__()
        self.event = event if isinstance(event, tuple) else (event,)
        size = torch.Size(self.event).numel()
        self.network = perceptron_encoder((3,), size, [6], covariance)
        self.covariance = covariance

    def forward(self, x):
        loc, scale = self.network(x)
        loc = loc.reshape(-1, *self.event)
        return loc, scale if self.covariance == "full" else scale.reshape(loc.shape)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("support", SUPPORTS)
def test_every_support(support, covariance):
    prior, event = SUPPORTS[support]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            mean = z.flatten(-2).sum(-1) if support == "matrix" else z.sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, 0])

    result = fit(model, EncoderGuide(Shaped(event, covariance)), rows(), steps=2, progress=False)
    draws = result.sample(3)["z"]
    assert prior().support.check(draws).all()
    assert torch.isfinite(result.losses).all()
    q = result.guide.posterior(rows())
    assert q.batch_shape == (N,) and q.event_shape == prior().event_shape


@pytest.mark.parametrize(
    ("plate", "rest"), [("batch", "normal"), ("subsampled", "multivariate_normal")]
)
def test_other_latents_have_a_guide_of_their_own(plate, rest):
    guide = EncoderGuide(perceptron_encoder((3,), 2, []), rest=rest)
    result = fit(with_globals(PLATES[plate]), guide, rows(), batch_size=12, steps=3, progress=False)
    shapes = {name: tuple(value.shape) for name, value in result.sample(5).items()}
    assert shapes == {"mean": (5, 2), "width": (5,), "z": (5, N, 2)}


def test_a_model_that_subsamples_by_itself_has_its_rows_encoded():
    seen = []
    network = perceptron_encoder((3,), 2, [])

    def watched(x):
        seen.append(len(x))
        return network(x)

    def model(x):
        with pyro.plate("data", N, subsample_size=7) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[i][:, :2])

    pyro.module("network", network)
    guide = EncoderGuide(lambda x: (pyro.module("network", network), watched(x))[1])
    result = fit(model, guide, rows(), steps=2, compile=False, progress=False)
    assert set(seen) == {7} and torch.isfinite(result.losses).all()


def test_two_encoders_and_a_named_guide():
    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(y, 1.0).to_event(1))
            seen = z + shift.unsqueeze(-1)
            pyro.sample("x", dist.Normal(seen, 1.0).to_event(1), obs=x[:, :2])

    networks = [perceptron_encoder((3,), 2, []) for _ in range(2)]
    guide = EncoderGuide(networks[0], rest=EncoderGuide(networks[1], latent="y"))
    result = fit(model, guide, rows(), batch_size=12, steps=3, progress=False)
    assert set(result.sample(2)) == {"shift", "y", "z"}


def linear(x):
    """z ~ Normal(0, 1), x ~ Normal(2 z, 0.5): the posterior is Normal(2x / 4.25, 0.25 / 4.25)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(2 * z, 0.5).to_event(1), obs=x)


def far_off(x):
    one = pyro.param("one", torch.ones(1))
    return 0 * x + one, 0 * x + 0.9


def test_one_full_step_of_refinement_is_exact_for_a_linear_model():
    x = rows()[:, :1]
    guide = EncoderGuide(far_off, refinement=Refinement(steps=1, rate=1.0)).completed(linear)
    q = guide.posterior(x)
    torch.testing.assert_close(q.mean, 2 * x / 4.25 / 1.0)
    torch.testing.assert_close(q.stddev, torch.full_like(x, 0.25 / 4.25) ** 0.5)


def test_refinement_is_captured_and_lifts_the_bound():
    options = {"steps": 100, "seed": 0, "progress": False, "objective": ELBO(1)}
    optimizer = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    x, network = rows()[:, :1], perceptron_encoder((1,), 1, [])
    guides = [EncoderGuide(network, refinement=r) for r in (None, Refinement(6))]
    results = [fit(linear, guide, x, **options, **optimizer) for guide in guides]
    assert all(r.execution.mode == "captured" for r in results), results[1].execution
    elbos = [r.elbo for r in results]
    assert elbos == sorted(elbos)
    evidence = dist.Normal(0.0, 4.25**0.5).log_prob(x).sum()
    assert elbos[-1] == pytest.approx(evidence.item(), abs=0.01 * N)


def test_refinement_is_of_each_particle_by_itself():
    """The factor given one draw of the other latents, whatever stands beside that draw."""
    guide = EncoderGuide(perceptron_encoder((3,), 2, []), refinement=Refinement(2))
    objective = ELBO(2)
    result = fit(
        with_globals(of_batch), guide, rows(), objective=objective, steps=1, progress=False
    )
    plan = objective.plan(result.job.pair(result.job.source.whole()))
    assert plan.structure.guide_particles == "plate"


def test_the_same_guide_serves_another_model():
    guide = EncoderGuide(perceptron_encoder((3,), 2, []))
    for plate in PLATES.values():
        result = fit(local(plate), guide, rows(), steps=2, progress=False)
        assert torch.isfinite(result.losses).all()


def test_new_data_of_any_length_are_encoded():
    guide = EncoderGuide(convolutional_encoder((4, 4), 2, [3]))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z.sum(-1)[..., None, None] * torch.ones(4, 4)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)

    result = fit(model, guide, torch.randn(20, 4, 4), batch_size=8, steps=3, progress=False)
    assert result.guide.posterior(torch.randn(5, 4, 4)).mean.shape == (5, 2)


BAD = {
    "one tensor": (nn.Linear(3, 2), r"returned one tensor of shape \(30, 2\)"),
    "wrong size": (perceptron_encoder((3,), 4, []).float(), "shapes \\(30, 2\\) and \\(30, 2\\)"),
    "negative": (lambda x: (x[:, :2], -x[:, :2].abs()), "not positive. End it with"),
    "not finite": (lambda x: (x[:, :2] / 0, x[:, :2].exp()), "not finite"),
    "numbers": (lambda x: (0.0, 1.0), "returned"),
    "wrong width": (
        perceptron_encoder((7,), 2, []),
        r"latent='z'\): the network \(GaussianEncoder\) cannot take data of shape \[30, 3\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_networks(name):
    network, said = BAD[name]
    network = network.double() if isinstance(network, nn.Module) else network
    with pytest.raises(GuideError, match=said):
        fit(local(of_batch), EncoderGuide(network), rows(), steps=1, progress=False)


def test_networks_of_another_dtype_than_the_data():
    guide = EncoderGuide(perceptron_encoder((3,), 2, []).double())
    said = (
        r"parameters of torch.float64 and was given torch.float32.*x\.double\(\), or .*network\.to"
    )
    with pytest.raises(GuideError, match=said):
        fit(local(of_batch), guide, rows().float(), steps=1, progress=False)
    result = fit(local(of_batch), guide, rows(), steps=1, progress=False)
    with pytest.raises(GuideError, match=said):
        result.log_evidence(data=rows().float())
    with pytest.raises(GuideError, match=said):
        result.guide.posterior(rows().float())
    with pytest.raises(GuideError, match="cannot take data of shape") as caught:
        result.guide.posterior(rows()[:, :2])
    assert "\n" not in str(caught.value)


def test_classes_are_not_guides():
    with pytest.raises(TypeError, match=r"EncoderGuide is a class.*first, EncoderGuide\(network\)"):
        fit(local(of_batch), EncoderGuide, rows(), steps=1, progress=False)
    guide = EncoderGuide(perceptron_encoder((3,), 2, []), rest=EncoderGuide)
    with pytest.raises(TypeError, match="EncoderGuide is a class"):
        fit(with_globals(of_batch), guide, rows(), steps=1, progress=False)


def test_bad_guides():
    network = perceptron_encoder((3,), 2, [])

    def attempt(guide, model=None):
        return fit(model or local(of_batch), guide, rows(), steps=1, progress=False)

    with pytest.raises(GuideError, match=r"no such latent.*'z'"):
        attempt(EncoderGuide(network, latent="q", rest=None))
    with pytest.raises(GuideError, match="rest='normal'"):
        attempt(EncoderGuide(network, rest="cavi"), with_globals(of_batch))
    with pytest.raises(ValueError, match="unknown guide 'none'"):
        attempt(EncoderGuide(network, rest="none"), with_globals(of_batch))
    with pytest.raises(TypeError, match="network must be"):
        EncoderGuide(3.0)
    with pytest.raises(TypeError, match=r"latent must be the name of one site, not \['z'\]"):
        EncoderGuide(network, latent=["z"])
    full = perceptron_encoder((3,), 2, [], "full")
    with pytest.raises(GuideError, match="refinement needs standard deviations"):
        attempt(EncoderGuide(full, refinement=Refinement()))
    with pytest.raises(ValueError, match="Refinement needs"):
        Refinement(num_draws=3)

    def below_another(x):
        end = pyro.sample("end", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(2), end.unsqueeze(-1)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :2])

    with pytest.raises(GuideError, match="site 'z': its support depends"):
        attempt(EncoderGuide(network), below_another)

    def labels(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    with pytest.raises(GuideError, match="discrete"):
        attempt(EncoderGuide(network), labels)
