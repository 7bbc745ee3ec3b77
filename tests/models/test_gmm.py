"""BayesianGMM: its options, its sites, where it starts, and how its components are named."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value

from ppl_vi import DataError, ModelError, fit
from ppl_vi.clusters import find_clusters
from ppl_vi.models import BayesianGMM
from ppl_vi.program import Pair, completed, draw_plainly, hide, inspect
from ppl_vi.program.run import run_guide, run_model
from ppl_vi.registry import GuideStart, guide_builder

K, N = 3, 30
OPTIONS = [
    pytest.param(dims, {"pi": pi, "sigma": sigma}, id=f"{dims}-{pi}-{sigma}")
    for dims in (1, 2)
    for pi in ("learned", "dirichlet", "fixed")
    for sigma in ("learned", "fixed", "spherical", "diagonal", "full")
    if dims == 2 or sigma not in ("diagonal", "full")
]
options = pytest.mark.parametrize(("dims", "choices"), OPTIONS)
FIXED = {"pi": [0.2, 0.3, 0.5], "sigma": 0.7}


def make(choices, **others):
    chosen = {name: FIXED[name] if word == "fixed" else word for name, word in choices.items()}
    return BayesianGMM(K, **chosen, **others)


def clusters(num_clusters, dims, rows_each=20, distance=8.0, width=1.0):
    """``[N, D]`` (or ``[N]``) around well separated centres, ascending in the first coordinate."""
    centers = distance * torch.arange(num_clusters).repeat_interleave(rows_each).float()
    shuffled = centers[torch.randperm(len(centers))]
    rows = shuffled.unsqueeze(-1) + width * torch.randn(len(centers), max(dims, 1))
    return rows if dims else rows.squeeze(-1)


def data_of(dims):
    return clusters(K, 0 if dims == 1 else dims, N // K)


def pair_of(model, data):
    start = GuideStart(init_to_value(values=model.initial_values(data)))
    return Pair(model, guide_builder("normal")(hide(model, ["z"]), start), (data,), {})


# --- options and data ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "1 or more"),
        ({"num_components": 2.0}, "integer"),
        ({"num_components": True}, "integer"),
        ({"tau": -1.0}, "tau must be a positive"),
        ({"tau": "full"}, "tau must be a positive .* 'learned'"),
        ({"tau": float("nan")}, "tau must be a positive"),
        ({"tau": torch.tensor([1.0, 0.0])}, "tau must be a positive"),
        ({"tau": True}, "tau must be a positive"),
        ({"sigma": 0.0}, "sigma must be a positive"),
        ({"sigma": "tied"}, "'learned' or 'spherical' or 'diagonal' or 'full'"),
        ({"sigma": None}, "sigma must be"),
        ({"pi": "fixed"}, "pi must be 'learned', 'dirichlet' or 2"),
        ({"pi": torch.tensor([0.5, 0.3, 0.2])}, "2 positive weights"),
        ({"pi": torch.tensor([0.5, 0.6])}, "sum to one"),
        ({"pi": [1.0, 0.0]}, "2 positive weights"),
        ({"concentration": 0.0}, "concentration must be a positive number"),
        ({"spread": "learned"}, "spread must be a positive number"),
        ({"spread": torch.ones(2)}, "spread must be one positive number"),
        ({"tau": float("inf")}, "tau must be a positive"),
    ],
)
def test_impossible_options(arguments, message):
    with pytest.raises(ModelError, match=message):
        BayesianGMM(**{"num_components": 2, **arguments})


@pytest.mark.parametrize(
    ("sigma", "data", "message"),
    [
        ("learned", torch.arange(6), "floating-point"),
        ("learned", torch.zeros(2, 3, 4), r"not \(2, 3, 4\)"),
        ("learned", torch.tensor(1.0), r"not \(\)"),
        ("learned", [1.0, 2.0], "not list"),
        ("diagonal", torch.arange(6.0), "needs data"),
        ("full", torch.arange(6.0), "unsqueeze"),
        ("full", torch.zeros(6, 1), "two dimensions or more"),
        ("learned", torch.zeros(0), "no rows"),
    ],
)
def test_impossible_data(sigma, data, message):
    model = BayesianGMM(2, sigma=sigma)
    for call in (model, model.initial_values):
        with pytest.raises(DataError, match=message):
            call(data)


# --- sites --------------------------------------------------------------------------------------


@options
def test_sites_plates_and_shapes(dims, choices):
    model, data = make(choices), data_of(dims)
    sites = poutine.trace(model).get_trace(data).nodes
    event = data.shape[1:]
    shapes = {"mu": (K, *event), "z": (N,), "x": (N, *event)}
    plates = {"mu": "component", "z": "data", "x": "data"}
    if choices["pi"] == "dirichlet":
        shapes["pi"] = (K,)
    if choices["sigma"] in ("spherical", "diagonal", "full"):
        shapes["sigma"] = (K,) if choices["sigma"] == "spherical" else (K, *event)
        plates["sigma"] = "component"
    if choices["sigma"] == "full":
        shapes["correlation"], plates["correlation"] = (K, dims, dims), "component"
    sampled = {n: s for n, s in sites.items() if s["type"] == "sample" and n not in plates.values()}
    assert {name: tuple(site["value"].shape) for name, site in sampled.items()} == shapes
    assert {n: s["cond_indep_stack"][0].name for n, s in sampled.items() if n != "pi"} == plates
    learned = {name for name in ("tau", "pi", "sigma") if getattr(model, name) == "learned"}
    assert {name for name, site in sites.items() if site["type"] == "param"} == learned


def by_brute_force(structure, pair, values):
    """``[S, N]``: log p(x_i | values) by adding up the joint over every label."""
    terms = []
    for k in range(K):
        labels = torch.full((len(values["mu"]), N), k)
        factors = run_model(completed(structure), pair, {**values, "z": labels}, len(labels))
        of_rows = [factor.log_prob for factor in factors if factor.sites[0] in ("x", "z")]
        terms.append(sum(of_rows))
    return torch.stack(terms)


@options
def test_particles_run_in_a_plate_and_labels_are_summed_out(dims, choices):
    model, data = make(choices), data_of(dims)
    pair = pair_of(model, data)
    structure = inspect(pair)
    assert (structure.guide_particles, structure.model_particles) == ("plate", "plate")
    assert structure.marginalized == ("z",)
    with torch.no_grad(), pyro.validation_enabled(False):
        values = run_guide(structure, pair, draw_plainly, 4).values
        (rows,) = [f for f in run_model(structure, pair, values, 4) if "x" in f.sites]
        expected = by_brute_force(structure, pair, values).logsumexp(0)
    assert rows.plates == ("data",)
    torch.testing.assert_close(rows.log_prob, expected)


@pytest.mark.parametrize("sigma", ["learned", "spherical", "full"])
def test_double_precision_and_one_component(sigma):
    data = 3 + torch.randn(40, 2, dtype=torch.float64)
    result = fit(BayesianGMM(1, sigma=sigma), data=data, steps=300, seed=0, progress=False)
    draws = result.sample(500)
    assert {v.dtype for n, v in draws.items() if n != "z"} == {torch.float64}
    assert (draws["mu"].mean(0)[0] - data.mean(0)).abs().max() < 0.1
    assert (draws["z"] == 0).all()


# --- where it starts ----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [0, 2])
@pytest.mark.parametrize("num_components", [2, 3, 6])
def test_starts_never_collapse(num_components, dims):
    truth = 8.0 * torch.arange(num_components)
    for seed in range(20):
        torch.manual_seed(seed)
        data = clusters(num_components, dims)
        values = BayesianGMM(num_components).initial_values(data)
        mu = values["mu"].reshape(num_components, -1)
        assert (mu - truth.unsqueeze(-1)).abs().max() < 1.5, seed
        assert (mu[1:, 0] > mu[:-1, 0]).all()
        torch.testing.assert_close(values["pi"].sum(), torch.tensor(1.0))


@options
def test_starting_values_suit_the_sites(dims, choices):
    model, data = make(choices), data_of(dims)
    values = model.initial_values(data)
    trace = poutine.trace(poutine.condition(model, values)).get_trace(data)
    assert torch.isfinite(trace.log_prob_sum())
    for name in ("mu", "pi", "sigma", "correlation"):
        if name in trace.nodes and trace.nodes[name]["type"] == "sample":
            assert values[name].shape == trace.nodes[name]["value"].shape
            assert trace.nodes[name]["fn"].support.check(values[name]).all()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(torch.tensor([1.0, 1.0, 1.0, 5.0, 9.0]), id="duplicates"),
        pytest.param(torch.tensor([[1.0, 7.0], [2.0, 7.0], [9.0, 7.0], [5.0, 7.0]]), id="constant"),
        pytest.param(1e6 + torch.arange(12.0), id="far"),
        pytest.param(1e-6 * torch.arange(12.0), id="small"),
        pytest.param(torch.arange(3.0), id="as many rows"),
    ],
)
def test_starts_on_awkward_data(data):
    sigma = "spherical" if data.dim() == 1 else "full"
    values = BayesianGMM(3, sigma=sigma).initial_values(data)
    assert all(torch.isfinite(value).all() for value in values.values())
    assert (values["sigma"] > 0).all()
    assert len(values["mu"].unique(dim=0)) == 3


@pytest.mark.parametrize("data", [torch.arange(2.0), torch.tensor([1.0, 1.0, 4.0, 4.0])])
def test_too_few_distinct_rows(data):
    with pytest.raises(DataError, match="2 distinct rows, fewer than the 3 components"):
        BayesianGMM(3).initial_values(data)


def test_many_rows_and_the_seed():
    data = clusters(3, 2, rows_each=10_000)
    starts = []
    for _ in range(2):
        torch.manual_seed(5)
        starts.append(find_clusters(data, 3).means)
    assert torch.equal(*starts)
    assert (starts[0] - 8.0 * torch.arange(3).unsqueeze(-1)).abs().max() < 0.2


# --- names of components ------------------------------------------------------------------------


def log_joint(model, data, draws, k):
    """log p(data, draw k)."""
    values = {name: value[k] for name, value in draws.items()}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(data)
    return trace.log_prob_sum()


@pytest.mark.parametrize("sigma", ["spherical", "diagonal", "full"])
def test_relabelling_is_one_permutation_of_all_sites(sigma):
    model, data = BayesianGMM(K, tau=5.0, pi="dirichlet", sigma=sigma), data_of(2)
    traces = [poutine.trace(model).get_trace(data) for _ in range(6)]
    names = [n for n in ("mu", "pi", "sigma", "correlation", "z") if n in traces[0].nodes]
    draws = {n: torch.stack([trace.nodes[n]["value"] for trace in traces]) for n in names}
    order = torch.tensor([2, 0, 1])  # the means' order must hold over draws, not in each
    draws["mu"] = draws["mu"] + 20.0 * order.unsqueeze(-1)
    renamed = model.relabel(draws)
    assert (renamed["mu"].mean(0)[:, 0].diff() > 0).all()
    for name in set(names) - {"z"}:
        assert torch.equal(renamed[name], draws[name][:, order.argsort()])
    rows = torch.arange(len(data))
    for k in range(6):
        same = renamed["mu"][k][renamed["z"][k][rows]] == draws["mu"][k][draws["z"][k][rows]]
        assert same.all()
        torch.testing.assert_close(
            log_joint(model, data, renamed, k), log_joint(model, data, draws, k)
        )
    assert model.relabel({"pi": draws["pi"]})["pi"] is draws["pi"]


def test_unequal_fixed_weights_name_the_components():
    data = torch.cat([torch.randn(80) - 5, torch.randn(20) + 5])
    model = BayesianGMM(2, pi=[0.2, 0.8])
    assert (model.initial_values(data)["mu"].round() / 5).round().tolist() == [1.0, -1.0]
    draws = {"mu": torch.tensor([[5.0, -5.0]])}
    assert torch.equal(model.relabel(draws)["mu"], draws["mu"])


# --- responsibilities ---------------------------------------------------------------------------


def test_responsibilities_are_the_exact_ones():
    data = clusters(2, 0, rows_each=30, distance=2.5)
    model = BayesianGMM(2, tau=5.0, sigma=1.0)
    result = fit(model, data=data, steps=300, seed=0, progress=False)
    draws = result.sample(4_000)
    found = model.responsibilities(draws)
    log_p = -0.5 * (data.unsqueeze(-1) - draws["mu"].unsqueeze(1)).square()
    exact = (log_p + result.params["pi"].log()).softmax(-1).mean(0)
    torch.testing.assert_close(found.sum(-1), torch.ones(len(data)))
    assert (exact.max(-1).values < 0.9).any()  # some rows are in doubt
    # 4.5 standard errors of a share of 4,000 draws: 120 numbers alarm falsely once in 1,000.
    assert (found - exact).abs().max() < 4.5 * 0.5 / 4_000**0.5
