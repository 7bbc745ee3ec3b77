"""What each draw reaches, and which programs mix the elements of a plate."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vi.program import Pair, find_dependencies, inspect


def sigmoid_guide(*names):
    """Independent Bernoulli draws."""

    def guide():
        for name in names:
            pyro.sample(name, dist.Bernoulli(torch.tensor(0.4)))

    return guide


def found(model, guide, sites, args=()):
    pair = Pair(model, guide, args, {})
    return find_dependencies(inspect(pair), pair, sites)


def model_factors(dependencies, site):
    """Names of the model's factors downstream of a site."""
    return {
        name
        for origin, sites in dependencies.downstream[site]
        for name in sites
        if origin == "model"
    }


def using(transport):
    """``b`` reaches ``x`` by some road from ``a``, and ``y`` depends on ``b`` alone."""

    def model():
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(0.2))
        mean, handler = transport(a)
        with handler:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(0.2))

    return model


NO_HANDLER = poutine.scale(scale=1.0)


def in_place(a):
    mean = torch.zeros(3)
    mean[1] = a
    return mean.sum(), NO_HANDLER


def in_place_through_a_view(a):
    mean = torch.zeros(3)
    mean.view(3, 1)[0].add_(a)
    return mean[0], NO_HANDLER


def out_argument(a):
    mean = torch.zeros(())
    torch.mul(a, 2.0, out=mean)
    return mean, NO_HANDLER


def twice(a: torch.Tensor) -> torch.Tensor:
    return a * 2.0 + 1.0


def sparse(a):
    matrix = torch.eye(2).to_sparse() * a
    return torch.sparse.mm(matrix, torch.ones(2, 1)).sum(), NO_HANDLER


ROADS = {
    "arithmetic": lambda a: (2.0 * a, NO_HANDLER),
    "in place": in_place,
    "in place through a view": in_place_through_a_view,
    "out argument": out_argument,
    "copied": lambda a: (a.detach().clone(), NO_HANDLER),
    "data": lambda a: (a.data + 1.0, NO_HANDLER),
    "torch.tensor": lambda a: (torch.tensor(a), NO_HANDLER),
    "item": lambda a: (torch.tensor(a.item()), NO_HANDLER),
    "branch": lambda a: (torch.tensor(1.0 if a > 0 else 0.0), NO_HANDLER),
    "tolist": lambda a: (torch.tensor(a.tolist()), NO_HANDLER),
    "numpy": lambda a: (torch.as_tensor(a.numpy() * 2.0), NO_HANDLER),
    "index": lambda a: (torch.tensor([0.0, 1.0])[a.long()], NO_HANDLER),
    "shape": lambda a: (torch.tensor(float(len(a.reshape(1).nonzero()))), NO_HANDLER),
    "shape by mask": lambda a: (
        torch.tensor(float(len(torch.ones(1)[a.reshape(1) > 0]))),
        NO_HANDLER,
    ),
    "script": lambda a: (torch.jit.script(twice)(a), NO_HANDLER),
    "vmap": lambda a: (torch.vmap(lambda s: s * a)(torch.ones(2)).sum(), NO_HANDLER),
    "sparse": sparse,
    "mask": lambda a: (torch.tensor(0.0), poutine.mask(mask=a > 0)),
    "scale": lambda a: (torch.tensor(0.0), poutine.scale(scale=1.0 + a)),
    "sampled": lambda a: (torch.normal(a, 1.0), NO_HANDLER),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("road", ROADS)
def test_no_road_from_a_draw_to_a_factor_is_lost(road):
    reached = found(using(ROADS[road]), sigmoid_guide("a", "b"), ("a", "b"))
    assert model_factors(reached, "a") >= {"a", "x"}
    assert model_factors(reached, "b") >= {"b", "y"}


FOLLOWED = ("arithmetic", "in place", "in place through a view", "out argument", "copied", "data")


@pytest.mark.parametrize("road", [*FOLLOWED, "vmap", "mask", "scale"])
def test_factors_out_of_reach_are_left_out(road):
    reached = found(using(ROADS[road]), sigmoid_guide("a", "b"), ("a", "b"))
    assert model_factors(reached, "a") == {"a", "x"}
    assert model_factors(reached, "b") == {"b", "y"}


def mixture():
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(mu[..., 0] + z * 1.5, 1.0), obs=torch.zeros(5))


def mixture_guide():
    pyro.sample("mu", dist.Normal(torch.zeros(2), 0.1).to_event(1))
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Categorical(torch.ones(5, 2)))


def test_an_assignment_does_not_reach_the_prior_of_the_means():
    reached = found(mixture, mixture_guide, ("mu", "z"))
    assert reached.downstream["z"] == {("model", ("z",)), ("model", ("x",)), ("guide", ("z",))}
    assert ("model", ("z",)) not in reached.downstream["mu"]
    assert reached.mixed == {"z": frozenset(), "mu": frozenset()}


def test_draws_reach_what_later_draws_of_the_guide_reach():
    def model():
        for name in "abc":
            pyro.sample(name, dist.Normal(0.0, 1.0))

    def guide():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("c", dist.Normal(b, 1.0))

    reached = found(model, guide, ("a", "b", "c"))
    assert [model_factors(reached, n) for n in "abc"] == [{"a", "b", "c"}, {"b", "c"}, {"c"}]
    guides = [{s for o, (s,) in reached.downstream[n] if o == "guide"} for n in "abc"]
    assert guides == [{"a", "b", "c"}, {"b", "c"}, {"c"}]


def test_a_marginal_factor_is_reached_as_one():
    def model():
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(a + k, 1.0), obs=torch.tensor(0.0))

    reached = found(model, sigmoid_guide("a"), ("a",))
    assert ("model", ("k", "x")) in reached.downstream["a"]


def plate_guide(size):
    def guide():
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(torch.full((size,), 0.5)))

    return guide


def feeding(mean_of, size):
    """A model whose observation means are any function of all assignments."""

    def model():
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(mean_of(z), 1.0), obs=torch.zeros(size))

    return model


def one_neighbour(z):
    """Only the last observation sees another element, the first."""
    return torch.cat([z[..., :-1], z[..., -1:] + z[..., :1]], -1)


def batch_normed(z):
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 0.1)


def learned_neighbour(z):
    weight = pyro.param("weight", torch.tensor(0.0))
    return z + weight * z.roll(1, -1)


MIXING = {
    "cumulative sum": lambda z: z.cumsum(-1),
    "mean fed back": lambda z: z - z.mean(-1, keepdim=True),
    "neighbour": lambda z: z.roll(1, -1),
    "one pair only": one_neighbour,
    "batch norm": batch_normed,
    "weight that starts at zero": learned_neighbour,
    "faint": lambda z: 100.0 * z + 1e-4 * z.roll(1, -1),
}
PLAIN = {
    "alone": lambda z: 2.0 * z,
    "indexed": lambda z: torch.tensor([0.5, 1.0])[z.long()],
    "softmax over another dimension": lambda z: torch.stack([z, 1.0 - z], -1).softmax(-1)[..., 0],
    "matrix product": lambda z: torch.stack([z, z], -1) @ torch.ones(2),
}


@pytest.mark.parametrize("size", [2, 3, 7, 64])
@pytest.mark.parametrize("mean_of", MIXING)
def test_mixing_is_found(mean_of, size):
    for seed in range(3):
        pyro.set_rng_seed(seed)
        reached = found(feeding(MIXING[mean_of], size), plate_guide(size), ("z",))
        assert reached.mixed["z"] == {"data"}


@pytest.mark.parametrize("mean_of", PLAIN)
def test_plain_plates_do_not_mix(mean_of):
    reached = found(feeding(PLAIN[mean_of], 7), plate_guide(7), ("z",))
    assert reached.mixed["z"] == frozenset()


def test_a_sum_outside_the_plate_is_no_mixing():
    def model():
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("total", dist.Normal(z.sum(), 1.0), obs=torch.tensor(2.0))

    reached = found(model, plate_guide(5), ("z",))
    assert reached.mixed["z"] == frozenset()
    assert model_factors(reached, "z") == {"z", "total"}


def test_a_global_draw_in_between_mixes():
    def guide():
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Bernoulli(torch.full((5,), 0.5)))
        s = pyro.sample("s", dist.Normal(z.mean(-1), 1.0))
        with pyro.plate("again", 5):
            pyro.sample("w", dist.Normal(s, 1.0))

    def model():
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Bernoulli(torch.sigmoid(s)))
        with pyro.plate("again", 5):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    assert found(model, guide, ("z",)).mixed["z"] == {"data"}


def test_one_of_two_plates_is_mixed():
    def model():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z.cumsum(-2), 1.0), obs=torch.zeros(4, 3))

    def guide():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("z", dist.Bernoulli(torch.full((4, 3), 0.5)))

    assert found(model, guide, ("z",)).mixed["z"] == {"rows"}


def test_vectors_and_one_hot_draws_in_a_plate_are_perturbed_whole():
    seen = []

    def model():
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
            v = pyro.sample("v", dist.Dirichlet(torch.ones(3)))
            seen.extend([z, v])
            pyro.sample("x", dist.Normal((z * v).sum(-1), 1.0), obs=torch.zeros(5))

    def guide():
        with pyro.plate("data", 5):
            pyro.sample("z", dist.OneHotCategorical(torch.ones(5, 3)))
            pyro.sample("v", dist.Dirichlet(torch.ones(5, 3)))

    reached = found(model, guide, ("z", "v"))
    assert reached.mixed == {"z": frozenset(), "v": frozenset()}
    assert all(torch.allclose(value.sum(-1), torch.ones(())) for value in seen)


def test_parameters_and_random_state_are_left_as_they_were():
    pair = Pair(feeding(learned_neighbour, 5), plate_guide(5), (), {})
    structure = inspect(pair)
    weight = pyro.param("weight")
    state, version = torch.get_rng_state(), weight._version
    find_dependencies(structure, pair, ("z",))
    assert torch.equal(state, torch.get_rng_state())
    assert (weight.item(), weight._version) == (0.0, version)


def test_a_gamma_draw_in_between_does_not_mix():
    def model():
        with pyro.plate("data", 64):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            w = pyro.sample("w", dist.Gamma(1.0, 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=torch.zeros(64))

    def guide():
        with pyro.plate("data", 64):
            z = pyro.sample("z", dist.Bernoulli(torch.full((64,), 0.5)))
            pyro.sample("w", dist.Gamma(0.5 + z, 1.0))

    assert found(model, guide, ("z",)).mixed["z"] == frozenset()
