"""Fits in ArviZ: groups, dimensions and attributes, its functions, and what does not fit."""

import functools
import json
import warnings

import arviz as az
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import ModelError, fit
from ppl_vi.guides import EncoderGuide
from ppl_vi.models import VAE, BayesianGMM, ConjugateGMM
from ppl_vi.networks import perceptron_encoder

matplotlib.use("Agg")

NEW = int(az.__version__.split(".")[0]) >= 1
X = torch.tensor([0.3, -1.2, 0.8, 2.1, 1.0])
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def regression(x, y=None):
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    width = pyro.sample("width", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(level + (x * slope).sum(-1), width), obs=y)


def eight_schools(error, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(error)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", mean + spread * offset)
        pyro.sample("y", dist.Normal(effect, error), obs=y)


@functools.cache
def fitted(name):
    pyro.set_rng_seed(0)
    options = {"seed": 0, "progress": False, "steps": 60}
    if name == "regression":
        x = torch.randn(20, 2)
        return fit(regression, data={"x": x, "y": x[:, 0] + 0.3 * torch.randn(20)}, **options)
    if name == "eight schools":
        return fit(eight_schools, data=(ERRORS, EFFECTS), **options)
    clouds = torch.cat([torch.randn(15, 2) - 3, torch.randn(15, 2) + 3])
    if name == "mixture":
        return fit(BayesianGMM(2, pi="dirichlet", sigma="spherical"), data=clouds, **options)
    if name == "exact updates":
        return fit(ConjugateGMM(2), "cavi", clouds, **options)
    guide = EncoderGuide(perceptron_encoder((4, 4), 2, hidden=[8]))
    images = torch.randint(2, (30, 4, 4)).float()
    return fit(VAE((4, 4), 2, hidden=[8]), guide, images, batch_size=10, **options)


FITS = ("regression", "eight schools", "mixture", "exact updates", "autoencoder")


@pytest.fixture(scope="module", params=FITS)
def whole(request):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    result = fitted(request.param)
    return request.param, result, result.to_arviz(100)


def elpd(loo):
    return loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd


DRAWN = ("posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive")
DATA = {"regression": "x", "eight schools": "error"}


def test_every_group_is_there_and_draws_are_one_chain(whole):
    name, _, idata = whole
    for group in ("posterior", *DRAWN):
        assert idata[group].sizes["draw"] == 100 and idata[group].sizes["chain"] == 1
    assert set(idata["prior"].data_vars) == set(idata["posterior"].data_vars)
    for site, values in idata["observed_data"].data_vars.items():
        for group in ("posterior_predictive", "prior_predictive"):
            assert idata[group][site].dims == ("chain", "draw", *values.dims)
        points = idata["log_likelihood"][site]
        assert points.dims == ("chain", "draw", values.dims[0]) and np.isfinite(points).all()
    constant = "constant_data" in (idata.children if NEW else idata.groups())
    assert constant == (name in DATA)
    if constant:
        assert list(idata["constant_data"].data_vars) == [DATA[name]]
        assert idata["constant_data"][DATA[name]].dims[0] == idata["observed_data"]["y"].dims[0]


def test_densities_are_those_of_the_bound(whole):
    """The mean of lp - log_q is the ELBO, of exact updates with labels summed out, so a little more."""
    name, result, idata = whole
    stats = idata["sample_stats"]
    log_w = (stats["lp"] - stats["log_q"]).values
    error = (log_w.var() / 100 + result.elbo.standard_error**2) ** 0.5
    slack = 1.0 if name == "exact updates" else 0.0
    assert -4.5 * error - 1e-3 < log_w.mean() - result.elbo < 4.5 * error + slack + 1e-3
    assert stats["bound"].dims == ("step",) and stats["bound"].shape == (result.num_steps,)
    np.testing.assert_allclose(stats["bound"].values, -result.losses)


def test_attributes_say_what_was_fitted_and_how(whole):
    _, result, idata = whole
    said = idata["posterior"].attrs
    assert said["inference_library"] == "ppl_vi" and said["arviz_version"] == az.__version__
    assert said["guide"] == type(result.job.guide).__name__ and said["seed"] == 0
    assert said["objective"].startswith("ELBO(") and said["stop_reason"] == str(result.stop_reason)
    assert json.loads(said["estimators"]) == result.estimators
    assert said["num_steps"] == result.num_steps and said["elbo"] == float(result.elbo)


@pytest.mark.filterwarnings("ignore")  # ArviZ's own, of newer versions of what it is built on
def test_arviz_runs_on_it(whole, tmp_path):
    _, result, idata = whole
    continuous = [n for n, v in idata["posterior"].data_vars.items() if v.dtype.kind == "f"]
    assert len(az.summary(idata, var_names=continuous)) == len(result.summary(20))
    assert np.isfinite(elpd(az.loo(idata)))
    az.plot_forest(idata, var_names=continuous[:1])
    az.plot_ppc_dist(idata) if NEW else az.plot_ppc(idata, num_pp_samples=5)
    matplotlib.pyplot.close("all")
    idata.to_netcdf(str(tmp_path / "fit.nc"))


@pytest.mark.filterwarnings("ignore")
def test_fits_compare():
    """Of the same mixture by gradients and by exact updates: labels are summed out of both."""
    both = {name: fitted(name).to_arviz(100) for name in ("mixture", "exact updates")}
    table = az.compare(both)
    column = "elpd_loo" if "elpd_loo" in table else "elpd"
    assert abs(table[column].iloc[0] - table[column].iloc[1]) < 5.0


@pytest.mark.skipif(not NEW, reason="ArviZ before 1.0")
def test_the_new_generation_is_a_tree(whole):
    import xarray as xr

    assert isinstance(whole[2], xr.DataTree) and "posterior" in whole[2].children


# Labels.


@pytest.fixture(scope="module")
def schools():
    return fitted("eight schools")


NAMES = [f"School {letter}" for letter in "ABCDEFGH"]


def test_dimensions_and_labels_are_given(schools):
    idata = schools.to_arviz(9, coords={"school": NAMES})
    assert idata["posterior"]["offset"].sel(school="School C").shape == (1, 9)
    assert idata["observed_data"]["school"].values.tolist() == NAMES
    idata = schools.to_arviz(9, dims={"offset": ["place"], "y": "site"}, coords={"place": NAMES})
    assert idata["posterior"]["offset"].dims == ("chain", "draw", "place")
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "site")
    assert idata["observed_data"]["y"].dims == ("site",)


WRONG = {
    r"the model has no site 'offsets' \(it has .*'offset'": {"dims": {"offsets": ["school"]}},
    r"site 'offset' has shape \(8,\) and takes 1 names, but \['a', 'b'\] has 2.*\['school'\]": {
        "dims": {"offset": ["a", "b"]}
    },
    r"site 'offset' of shape \(8,\) cannot have a dimension 'draw'": {"dims": {"offset": ["draw"]}},
    r"site 'offset' of shape \(8,\) cannot have a dimension 'mean'": {"dims": {"offset": ["mean"]}},
    r"no site has a dimension 'scool' \(there are 'school', 'step'\)": {"coords": {"scool": NAMES}},
    r"'school' has 8 elements \(site 'offset' of shape \(8,\)\), but 7 labels": {
        "coords": {"school": NAMES[:7]}
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_labels_that_do_not_fit_are_refused(schools, message):
    with pytest.raises(ValueError, match=message):
        schools.to_arviz(4, **WRONG[message])


def test_one_name_for_two_sizes_is_refused():
    result = fitted("mixture")
    with pytest.raises(ValueError, match=r"'k' has 2 elements in site 'pi' .* but 30 in site 'z'"):
        result.to_arviz(4, dims={"pi": ["k"], "z": ["k"]})


# Models of other kinds.


def broadcast(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def of_columns(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("groups", 3, dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, None])


@pytest.mark.parametrize("model", [broadcast, of_columns])
def test_observations_that_broadcast(model):
    idata = fit(model, data=X, steps=2, progress=False).to_arviz(6)
    shape = (3, 5) if model is broadcast else (5, 3)
    assert idata["observed_data"]["x"].shape == shape
    assert idata["log_likelihood"]["x"].shape == (1, 6, *shape)
    assert "constant_data" not in (idata.children if NEW else idata.groups())


def subsampled(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 7, subsample_size=3) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def guide_of_subsampled(x):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))
    with pyro.plate("data", 7, subsample_size=3) as rows:
        pyro.sample("z", dist.Normal(10.0 * torch.arange(7.0)[rows], 0.1))


def test_a_model_that_subsamples_by_itself_gives_all_rows():
    x = torch.randn(7)
    result = fit(subsampled, guide_of_subsampled, x, steps=2, progress=False)
    pyro.set_rng_seed(0)
    draws = result.sample(40)
    pyro.set_rng_seed(0)
    points = result.log_likelihood(40)["x"]
    assert ((draws["z"].mean(0) - 10.0 * torch.arange(7.0)).abs() < 0.2).all()
    torch.testing.assert_close(points, dist.Normal(draws["z"], 1.0).log_prob(x))
    idata = result.to_arviz(9)
    np.testing.assert_array_equal(idata["observed_data"]["x"].values, x)
    posterior = {n: torch.tensor(v.values[0]) for n, v in idata["posterior"].data_vars.items()}
    mean, z = posterior["mean"], posterior["z"]
    lp = dist.Normal(0.0, 1.0).log_prob(mean) + (
        dist.Normal(mean.unsqueeze(-1), 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    ).sum(-1)
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], lp, rtol=1e-4)


@pytest.mark.slow
def test_two_plates_that_the_model_subsamples_are_refused():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with (
            pyro.plate("a", 6, subsample_size=2, dim=-1),
            pyro.plate("b", 6, subsample_size=2, dim=-2),
        ):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ModelError, match=r"plate '[ab]' has 2 of 6 elements"):
        fit(model, steps=2, progress=False).log_likelihood(3)


def test_chunks_of_draws_and_rows_change_nothing(monkeypatch):
    """The pointwise log-likelihood of rows is that of the draws, whatever parts they were taken in."""
    result = fitted("autoencoder")
    with result.fitted.applied():
        (images,) = result.job.source.whole().args
    for most in (5_000_000, 700, 1):
        monkeypatch.setattr("ppl_vi.questions.posterior.ELEMENTS_AT_ONCE", most)
        idata = result.to_arviz(5)
        z = torch.tensor(idata["posterior"]["z"].values[0])
        assert z.shape == (5, 30, 2)
        with result.fitted.applied(), torch.no_grad():
            held = pyro.poutine.condition(result.job.model, {"z": z[2]})
            site = pyro.poutine.trace(held).get_trace(images).nodes["x"]
            exact = site["fn"].log_prob(images)
        points = idata["log_likelihood"]["x"].values
        np.testing.assert_allclose(points[0, 2], exact, rtol=1e-4)
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum((-1, -2)).numpy()
        np.testing.assert_allclose(
            idata["sample_stats"]["lp"].values[0], points[0].sum(-1) + prior, rtol=1e-4
        )


def only_labels(x):
    mean = pyro.param("mean", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5)).long()
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def only_integers(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(pyro.param("mean", X[:2])[z], 1.0), obs=x)


@pytest.mark.parametrize("model", [only_labels, only_integers])
def test_a_model_of_labels_alone(model):
    result = fit(model, lambda x: None, X, steps=2, progress=False)
    table = result.summary(9)
    assert {"mean", "sd"} <= set(table.columns) and table.columns[0] == "mean"
    assert len(table) == (0 if model is only_integers else 5)
    assert result.to_arviz(9)["sample_stats"]["lp"].shape == (1, 9)
    assert result.plot(20).axes


def test_an_improper_prior_has_no_draws():
    def model(x):
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    idata = fit(model, data=X, steps=2, progress=False).to_arviz(4)
    assert not {"prior", "prior_predictive"} & set(idata.children if NEW else idata.groups())


@pytest.mark.slow
def test_a_model_that_fails_on_its_prior_is_exported_without_it():
    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
        if not torch.is_tensor(x) or (scale > 20.0).any():
            raise ValueError("out of range")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    def guide(x):
        pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    result = fit(model, guide, X, steps=2, progress=False)
    with pytest.warns(UserWarning, match=r"prior and prior_predictive are left out.*out of range"):
        idata = result.to_arviz(200)
    assert idata["posterior"].sizes["draw"] == 200


def test_a_fit_without_data_and_one_of_pyros_objectives():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=X)

    objective = pyro.infer.Trace_ELBO()
    idata = fit(model, objective=objective, steps=2, progress=False).to_arviz(4)
    assert idata["posterior"].attrs["objective"] == "Trace_ELBO"
    assert idata["posterior"].attrs["seed"] == "none"


def test_an_argument_with_the_name_of_its_plate():
    def model(data, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(mean * data, 1.0), obs=y)

    constant = fit(model, data=(X, 2 * X), steps=2, progress=False).to_arviz(3)["constant_data"]
    assert list(constant.data_vars) == ["data_values"] and constant["data_values"].dims == ("data",)


# Pictures.


@pytest.mark.parametrize("name", FITS)
def test_a_fit_has_a_picture(name):
    result = fitted(name)
    figure = result.plot(30)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == f"stopped after {result.num_steps} steps: {result.stop_reason}"
    sites = [n for n, v in result.sample(3).items() if v.is_floating_point()]
    assert [title.split(" (")[0] for title in titles[1:]] == sites
    assert "stop" in [line.get_label() for line in figure.axes[0].get_lines()]


def test_many_sites_have_a_few_panels():
    from ppl_vi.diagnostics.fit_picture import fit_picture

    draws = {f"site_{i}": torch.randn(50, 100) for i in range(20)} | {"held": torch.ones(50)}
    figure = fit_picture(torch.zeros(0), 0.0, "done", None, draws)
    assert len(figure.axes) == 8 and "(60 of 100)" in figure.axes[0].get_title(loc="left")
    assert "13 more sites" in figure.get_supxlabel()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_picture(torch.tensor([1.0, np.nan, 0.5]), -0.5, "done", 2, {"held": torch.ones(9)})
