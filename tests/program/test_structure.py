"""What is found out about a pair before its first step, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from ppl_vi import DataError, GuideError, ModelError
from ppl_vi.program import Pair, Plate, inspect

DATA = torch.tensor([0.1, 0.5, -0.3, 2.0])


def structure_of(model, guide, *args):
    return inspect(Pair(model, guide, args, {}))


def mixture(data):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("twice", 2.0 * mu)
    with pyro.plate("data", len(data)):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        mean = torch.where(k == 0, mu[..., 0], mu[..., 1])
        pyro.sample("x", dist.Normal(mean, w), obs=data)
    pyro.factor("bonus", torch.zeros(()))


def mixture_guide(data):
    pyro.sample("helper", dist.Bernoulli(torch.tensor(0.5)), infer={"is_auxiliary": True})
    pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pyro.plate("data", len(data)):
        pyro.sample("w", dist.LogNormal(torch.zeros(len(data)), 1.0))


def test_sites_are_of_their_kinds():
    structure = structure_of(mixture, mixture_guide, DATA)
    kinds = {name: site.kind for name, site in structure.sites.items()}
    assert kinds == {
        "helper": "auxiliary",
        "mu": "latent",
        "twice": "deterministic",
        "w": "latent",
        "k": "marginalized",
        "x": "observed",
        "bonus": "observed",
    }
    assert structure.drawn == ("helper", "mu", "w")
    assert structure.marginalized == ("k",)


def test_sites_are_described():
    sites = structure_of(mixture, mixture_guide, DATA).sites
    assert (sites["mu"].shape, sites["mu"].event_dim, sites["mu"].plates) == ((2,), 1, ())
    assert (sites["w"].shape, sites["w"].event_dim, sites["w"].plates) == ((4,), 0, ("data",))
    assert (sites["w"].distribution, str(sites["w"].support)) == (
        "LogNormal",
        "GreaterThan(lower_bound=0.0)",
    )
    assert (sites["k"].dtype, sites["x"].dtype) == (torch.int64, torch.float32)
    assert {n for n, s in sites.items() if s.reparameterizable} >= {"mu", "w"}
    assert {n for n, s in sites.items() if s.enumerable} == {"helper", "k"}
    assert not any(sites[n].fixed or sites[n].moving_support for n in ("helper", "mu", "w", "k"))


def test_plates_and_nesting_are_found():
    def model():
        with pyro.plate("outer", 3, dim=-3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 20, subsample_size=5, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3, 1, 5))

    def guide():
        with pyro.plate("outer", 3, dim=-3):
            pyro.sample("z", dist.Normal(torch.zeros(3, 1, 1), 1.0))

    structure = structure_of(model, guide)
    assert structure.plates == {
        "outer": Plate("outer", -3, 3, 3),
        "inner": Plate("inner", -1, 5, 20),
    }
    assert (structure.nesting, structure.particle_dim) == (3, -4)
    assert structure.sites["x"].plates == ("outer", "inner")
    assert structure.sites["z"].shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("shape", "plates"), [((), ()), ((4,), ("data",)), ((4, 3), ("data",))], ids=str
)
def test_a_deterministic_site_knows_its_plates(shape, plates):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4) if plates else pyro.poutine.scale(scale=1.0):
            pyro.deterministic("d", z * torch.ones(shape), event_dim=len(shape) - len(plates))

    site = structure_of(model, lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).sites["d"]
    assert (site.plates, site.shape) == (plates, shape)


def test_an_autoguide_has_an_auxiliary_site():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Gamma(1.0, 1.0))

    structure = structure_of(model, pyro.infer.autoguide.AutoMultivariateNormal(model))
    kinds = {name: (site.kind, site.fixed) for name, site in structure.sites.items()}
    assert list(kinds.values()) == [("auxiliary", False), ("latent", True), ("latent", True)]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("guide", "moving"),
    [
        (lambda: dist.Uniform(0.0, 1.0), False),
        (lambda: dist.Uniform(torch.zeros(()), pyro.param("c", torch.tensor(0.5))), True),
        (lambda: dist.Uniform(0.0, pyro.param("c", torch.tensor(0.5)).exp() / 2.0), True),
        (lambda: dist.Uniform(0.0, 0.9 * pyro.param("c", torch.tensor(0.5)).expand(())), True),
        (lambda: dist.Beta(pyro.param("c", torch.tensor(0.5)), 1.0), False),
        (lambda: dist.Kumaraswamy(pyro.param("c", torch.tensor(0.5)), torch.tensor(1.0)), False),
    ],
    ids=["fixed", "learned end", "derived end", "expanded", "beta", "kumaraswamy"],
)
def test_a_moving_support_is_seen(guide, moving, gradients):
    def model():
        pyro.sample("z", dist.Uniform(0.0, 1.0))

    with torch.set_grad_enabled(gradients):
        structure = structure_of(model, lambda: pyro.sample("z", guide()))
    assert structure.sites["z"].moving_support is moving


AFFINE, SIGMOID = dist.transforms.AffineTransform, dist.transforms.SigmoidTransform()
TRANSFORMED = {
    "shifted": (lambda c: (dist.Exponential(1.0), AFFINE(c, 1.0)), True),
    "scaled at zero": (lambda c: (dist.Exponential(1.0), AFFINE(0.0, c)), False),
    "scaled off zero": (lambda c: (dist.Uniform(0.0, 1.0), AFFINE(0.0, c)), True),
    "learned end": (lambda c: (dist.Uniform(0.0, c), AFFINE(1.0, 2.0)), True),
    "learned shape": (lambda c: (dist.Beta(c, 1.0), AFFINE(1.0, 2.0)), False),
    "opposite shifts": (
        lambda c: (dist.Beta(1.0, torch.ones(2)), AFFINE(c * torch.tensor([1.0, -1.0]), 1.0)),
        True,
    ),
    "events": (
        lambda c: (
            dist.Beta(torch.ones(2), 1.0).to_event(1),
            dist.transforms.IndependentTransform(AFFINE(c, 1.0), 1),
        ),
        True,
    ),
    "expanded and masked": (
        lambda c: (dist.Chi2(torch.ones(())).mask(True).expand([2]), AFFINE(c, 1.0)),
        True,
    ),
    "nested": (
        lambda c: (
            dist.TransformedDistribution(dist.Uniform(0.0, 1.0), [AFFINE(c, 1.0)]),
            AFFINE(0.0, 2.0),
        ),
        True,
    ),
    "whole line": (lambda c: (dist.Normal(c, 1.0), AFFINE(c, c)), False),
    "line to positive": (
        lambda c: (dist.Normal(c, 1.0), AFFINE(c, c), dist.transforms.ExpTransform()),
        False,
    ),
    "line to shifted positive": (
        lambda c: (dist.Normal(0.0, 1.0), dist.transforms.ExpTransform(), AFFINE(c, 1.0)),
        True,
    ),
    "line to scaled interval": (lambda c: (dist.Normal(0.0, 1.0), SIGMOID, AFFINE(0.0, c)), True),
    "logistic": (lambda c: (dist.Uniform(0.0, 1.0), SIGMOID.inv, AFFINE(c, c)), False),
    "logit of a part": (lambda c: (dist.Uniform(0.2, 0.8), SIGMOID.inv, AFFINE(0.0, c)), True),
    "power": (
        lambda c: (dist.Beta(1.0, 1.0), dist.transforms.PowerTransform(c), AFFINE(0, 1)),
        False,
    ),
    "flow": (
        lambda c: (dist.Normal(torch.zeros(2), 1.0), dist.transforms.Spline(2), AFFINE(c, 1.0)),
        False,
    ),
}


@pytest.mark.parametrize("case", TRANSFORMED)
def test_a_moving_support_is_seen_behind_a_transform(case):
    make, moving = TRANSFORMED[case]

    def guide():
        base, *transforms = make(pyro.param("c", torch.tensor(0.5)))
        z = dist.TransformedDistribution(base, transforms)
        pyro.sample("z", z.to_event(z.batch_shape.numel() > 1))

    value = pyro.poutine.trace(guide).get_trace().nodes["z"]["value"]
    prior = dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim())
    structure = structure_of(lambda: pyro.sample("z", prior), guide)
    assert structure.sites["z"].moving_support is moving
    assert pyro.param("c").grad is None


@pytest.mark.parametrize(
    ("family", "moving"),
    [
        (lambda c: dist.LogNormal(c, c), False),
        (lambda c: dist.Weibull(c, c), False),
        (lambda c: dist.Gumbel(c, c), False),
        (lambda c: dist.Pareto(1.0, c), False),
        (lambda c: dist.Pareto(c, 1.0), True),
        (lambda c: dist.AffineBeta(c, 1.0, 0.0, 1.0), False),
        (lambda c: dist.AffineBeta(1.0, 1.0, c, 1.0), True),
    ],
    ids=["lognormal", "weibull", "gumbel", "pareto", "scaled pareto", "beta", "shifted beta"],
)
def test_a_named_transform_tells_its_own_support(family, moving):
    def guide():
        pyro.sample("z", family(pyro.param("c", torch.tensor(0.5))))

    structure = structure_of(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), guide)
    assert structure.sites["z"].moving_support is moving


def test_a_moving_support_is_seen_inside_events_and_through_other_draws():
    def model():
        with pyro.plate("two", 2):
            pyro.sample("w", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.Uniform(torch.zeros(2), 9.0).to_event(1))

    def guide():
        with pyro.plate("two", 2):
            w = pyro.sample("w", dist.LogNormal(pyro.param("m", torch.zeros(2)), 0.1))
        pyro.sample("z", dist.Uniform(0.0, w).to_event(1))

    assert structure_of(model, guide).sites["z"].moving_support


def test_random_state_and_gradients_are_left_as_they_were():
    before = torch.get_rng_state()
    structure_of(mixture, mixture_guide, DATA)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def prior(distribution):
    return lambda: pyro.sample("z", distribution)


def normal_plate(size=4, event=()):
    def program():
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(torch.zeros(size, *event), 1.0).to_event(len(event)))

    return program


def observing(distribution, values):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("x", distribution, obs=values)

    return model


NORMAL = dist.Normal(0.0, 1.0)


def nothing():
    pass


def extra():
    pyro.sample("z", NORMAL)
    pyro.sample("other", NORMAL)


def observed_in_guide():
    pyro.sample("z", NORMAL, obs=torch.tensor(0.3))


def draws_the_data():
    pyro.sample("z", NORMAL)
    with pyro.plate("data", 4):
        pyro.sample("x", NORMAL)


REFUSED_GUIDES = {
    "missing": (prior(NORMAL), nothing, "site 'z' is latent.*Add pyro.sample"),
    "missing and infinite": (prior(dist.Poisson(1.0)), nothing, "site 'z'.*cannot be summed out"),
    "extra": (prior(NORMAL), extra, "site 'other'.*Remove it.*'z'.*is_auxiliary"),
    "observed in the guide": (prior(NORMAL), observed_in_guide, "site 'z' is observed.*Draw it"),
    "data drawn": (
        observing(NORMAL, DATA),
        draws_the_data,
        "site 'x'.*observed in the model.*Remove",
    ),
    "support": (prior(dist.Gamma(1.0, 1.0)), prior(NORMAL), "site 'z'.*Normal.*Gamma"),
    "support by scale": (
        prior(dist.Uniform(0.0, 1.0)),
        prior(dist.LogNormal(-9.0, 0.1)),
        "site 'z'",
    ),
    "wider interval": (prior(dist.Uniform(0.0, 1.0)), prior(dist.Uniform(-1.0, 2.0)), "site 'z'"),
    "simplex": (
        prior(dist.Dirichlet(torch.ones(2))),
        prior(dist.Beta(torch.ones(2), 1.0).to_event(1)),
        "site 'z'.*Dirichlet",
    ),
    "count for a class": (
        prior(dist.Categorical(torch.ones(2))),
        prior(dist.Poisson(1.0)),
        "site 'z'.*Poisson.*Categorical",
    ),
    "too many classes": (
        prior(dist.Categorical(torch.ones(2))),
        prior(dist.Categorical(torch.ones(3))),
        "site 'z'",
    ),
    "continuous for discrete": (prior(dist.Bernoulli(0.5)), prior(dist.Beta(1.0, 1.0)), "site 'z'"),
    "discrete for continuous": (prior(NORMAL), prior(dist.Bernoulli(0.5)), "site 'z'.*Bernoulli"),
    "too large a count": (
        prior(dist.Binomial(2, torch.tensor(0.5))),
        prior(dist.Binomial(3, torch.tensor(0.5))),
        "site 'z'",
    ),
    "shape": (normal_plate(4), prior(NORMAL), r"site 'z'.*shape \(\).*\(4,\).*plates"),
    "event shape": (normal_plate(4, (2,)), normal_plate(4, (3,)), "site 'z'.*shape"),
    "a failing guide": (
        prior(NORMAL),
        lambda: pyro.sample("z", NORMAL) @ 1,
        "guide could not run.*'z'",
    ),
}


@pytest.mark.parametrize("case", REFUSED_GUIDES)
def test_a_guide_that_does_not_fit_is_refused(case):
    model, guide, message = REFUSED_GUIDES[case]
    with pytest.raises(GuideError, match=message):
        structure_of(model, guide)


ACCEPTED_GUIDES = {
    "bernoulli for two classes": (
        prior(dist.Categorical(torch.ones(2))),
        prior(dist.Bernoulli(0.5)),
    ),
    "class for a count": (prior(dist.Poisson(1.0)), prior(dist.Categorical(torch.ones(3)))),
    "count for a count": (prior(dist.Poisson(1.0)), prior(dist.Geometric(0.5))),
    "narrower interval": (prior(dist.Uniform(-1.0, 2.0)), prior(dist.Beta(1.0, 1.0))),
    "logistic normal": (
        prior(dist.Dirichlet(torch.ones(3))),
        prior(
            dist.TransformedDistribution(
                dist.Normal(torch.zeros(2), 1.0).to_event(1),
                [dist.transforms.StickBreakingTransform()],
            )
        ),
    ),
    "point": (prior(dist.Gamma(1.0, 1.0)), prior(dist.Delta(torch.tensor(0.5)))),
    "positive": (prior(dist.HalfCauchy(1.0)), prior(dist.Gamma(1.0, 1.0))),
    "improper": (
        prior(dist.ImproperUniform(dist.constraints.positive, (), ())),
        prior(dist.Gamma(1.0, 1.0)),
    ),
    "mixture": (
        prior(NORMAL),
        prior(
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)
            )
        ),
    ),
    "mixture of vectors": (
        prior(dist.MixtureOfDiagNormals(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2))),
        prior(dist.MultivariateNormal(torch.zeros(3), torch.eye(3))),
    ),
    "circle": (prior(dist.VonMises(0.0, 1.0)), prior(dist.VonMises(1.0, 2.0))),
    "correlations": (
        prior(dist.LKJCholesky(3, torch.tensor(2.0))),
        prior(dist.LKJCholesky(3, torch.tensor(1.0))),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED_GUIDES)
def test_a_guide_that_fits_is_accepted(case):
    assert structure_of(*ACCEPTED_GUIDES[case]).drawn == ("z",)


@pytest.mark.parametrize(
    "family",
    [dist.Dirichlet(torch.ones(3)), dist.LKJCholesky(3, torch.tensor(1.0)), dist.Beta(1.0, 2.0)],
)
def test_constrained_sites_of_an_autoguide_are_accepted(family):
    model = prior(family)
    assert structure_of(model, AutoNormal(model)).sites["z"].fixed


REFUSED_DATA = {
    "wrong length": (NORMAL, torch.zeros(3), r"site 'x'.*\(3,\).*\(4,\).*equal lengths"),
    "extra dimension": (NORMAL, torch.zeros(2, 4), "site 'x'.*shape.*pyro.plate"),
    "integers": (NORMAL, torch.arange(4), r"site 'x'.*int64.*data.float\(\)"),
    "not a number": (NORMAL, torch.tensor([0.0, 1.0, torch.nan, 2.0]), "site 'x'.*NaN.*Correct"),
    "negative": (dist.Gamma(1.0, 1.0), -torch.ones(4), "site 'x'.*outside the support of Gamma"),
    "no such class": (
        dist.Categorical(torch.ones(3)),
        torch.tensor([0, 1, 2, 3]),
        "site 'x'.*Categorical",
    ),
    "half a count": (dist.Poisson(1.0), torch.full((4,), 0.5), "site 'x'.*Poisson"),
}


@pytest.mark.parametrize("case", REFUSED_DATA)
def test_data_that_do_not_fit_are_refused(case):
    distribution, values, message = REFUSED_DATA[case]
    with pyro.validation_enabled(False), pytest.raises(DataError, match=message):
        structure_of(observing(distribution, values), prior(NORMAL))


ACCEPTED_DATA = {
    "one value for all": (NORMAL, torch.tensor(0.3)),
    "one value for many bounds": (dist.Uniform(torch.zeros(4), 1.0), torch.tensor(0.3)),
    "whole numbers as counts": (dist.Poisson(1.0), torch.arange(4)),
    "floating-point classes": (dist.Bernoulli(0.5), torch.tensor([0.0, 1.0, 1.0, 0.0])),
    "masked away": (
        dist.Normal(torch.zeros(4), 1.0).mask(torch.arange(4) > 0),
        torch.tensor([torch.nan, 0, 0, 0]),
    ),
    "mixture": (
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)),
        DATA,
    ),
    "zero inflated": (
        dist.ZeroInflatedPoisson(torch.tensor(1.0), gate=torch.tensor(0.1)),
        torch.arange(4.0),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED_DATA)
def test_data_that_fit_are_accepted(case):
    distribution, values = ACCEPTED_DATA[case]
    assert (
        structure_of(observing(distribution, values), prior(NORMAL)).sites["x"].kind == "observed"
    )


def test_masked_observations_may_be_missing():
    def model():
        pyro.sample("z", NORMAL)
        with pyro.plate("data", 4), pyro.poutine.mask(mask=torch.arange(4) > 0):
            pyro.sample("x", NORMAL, obs=torch.tensor([torch.nan, 0.0, 0.0, 0.0]))

    assert structure_of(model, prior(NORMAL)).sites["x"].kind == "observed"


def test_a_model_without_latents_is_refused():
    def model():
        pyro.sample("x", NORMAL, obs=torch.tensor(0.0))

    with pytest.raises(ModelError, match=r"no latent.*prior"):
        structure_of(model, nothing)


def test_a_plate_that_is_not_declared_is_refused():
    def model():
        z = pyro.sample("z", NORMAL)
        pyro.sample("x", dist.Normal(z * torch.ones(4), 1.0), obs=DATA)

    with pytest.raises(ModelError, match=r"site 'x'.*pyro.plate.*to_event"):
        structure_of(model, prior(NORMAL))


def test_a_failing_model_names_the_last_site():
    def model():
        z = pyro.sample("z", NORMAL)
        return z @ torch.ones(3)

    with pytest.raises(
        ModelError, match=r"model could not run .at or after site 'z', .*line \d+ .*: RuntimeError"
    ):
        structure_of(model, prior(NORMAL))


def test_one_plate_at_two_dimensions_is_refused():
    def model():
        with pyro.plate("a", 3, dim=-1), pyro.plate("b", 3, dim=-2):
            pyro.sample("z", NORMAL)

    def guide():
        with pyro.plate("a", 3, dim=-2), pyro.plate("b", 3, dim=-1):
            pyro.sample("z", NORMAL)

    with pytest.raises(GuideError, match=r"site 'z'.*plate '[ab]'"):
        structure_of(model, guide)
