"""A diagnosis says what is wrong, and a page of it stands by itself in a browser."""

import base64
import dataclasses
import json
import re
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi import StopReason, fit
from ppl_vi.diagnostics.components import component_remarks
from ppl_vi.models import BayesianGMM
from ppl_vi.stopping.reasons import Convergence


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.5), obs=x)


def guide_of(x, shift=0.0, ratio=1.0):
    precision = 1 / 4 + len(x) / 2.25
    center, sd = (0.5 / 4 + x.sum() / 2.25) / precision, precision**-0.5

    def guide(x):
        loc = pyro.param("loc", (center + shift * sd).clone())
        pyro.sample("mean", dist.Normal(loc, ratio * sd))

    return guide


def at_start(shift=0.0, ratio=1.0, **options):
    x = torch.linspace(-1.0, 1.0, 20)
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "steps": 3} | options
    return fit(model, guide_of(x, shift, ratio), x, seed=0, progress=False, **options)


def test_a_good_fit():
    report = at_start().diagnose(1_000, progress=False)
    assert report.verdict.startswith(
        "Nothing speaks against it: k-hat is minus infinity, all weights are equal"
    )
    assert report.doubts == () and list(report.signal.index) == ["loc"]
    assert report.signal.loc["loc", "ratio"] < 1.0
    assert "effective sample size of the weights: 1000 of 1000 draws" in str(report)
    assert len(report.plot().axes) >= 4


def test_a_bad_fit():
    report = at_start(shift=4.0, ratio=0.5).diagnose(1_000, nuts_draws=100, progress=False)
    assert report.verdict.startswith("Not to be trusted as it is: k-hat is")
    assert report.signal.loc["loc", "ratio"] > 1.0
    assert any(line.startswith("off NUTS: 'mean' has mean") for line in report.doubts)
    row = report.nuts.loc[("mean", "")]
    assert row["shift"] == pytest.approx(4.0, abs=1.0) and row["width"] == pytest.approx(
        2.0, abs=0.5
    )


def test_a_guide_that_is_too_wide_is_to_be_reweighted():
    report = at_start(ratio=4.0).diagnose(1_000, progress=False)
    assert report.khat.usable and "too wide" in report.khat.words
    assert report.verdict.startswith("To be used with care: the guide is off: its draws are worth")
    assert "sample(n, reweight=True)" in report.doubts[0]


def test_noise_alone_speaks_against_nothing():
    result = at_start()
    noisy = dataclasses.replace(result, convergence=Convergence(StopReason.NOISE, 0, 0.1, 2.0))
    noisy = dataclasses.replace(noisy, remarks=noisy.convergence.advice)
    report = noisy.diagnose(1_000, progress=False)
    assert report.doubts == () and "remark: the bound is flat, but so noisy" in str(report)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_what_a_guide_does_not_have_is_left_out(batch_size):
    x = torch.linspace(-1.0, 1.0, 20)
    options = {"steps": 20, "seed": 0, "progress": False, "batch_size": batch_size}
    report = fit(model, "delta", x, **options).diagnose(1_000, progress=False)
    assert report.khat is None and "holds it at a point" in report.left_out["khat"]
    assert "no khat: site 'mean'" in str(report)
    with pytest.raises(ValueError, match="nuts_draws must be a positive integer"):
        fit(model, "delta", x, **options).diagnose(nuts_draws=-1)


def test_empty_and_duplicate_components():
    data = torch.cat([torch.randn(20) - 5, torch.randn(20) + 5])
    mixture = BayesianGMM(3, sigma=1.0, tau=5.0, pi=torch.tensor([0.4, 0.4, 0.2]))

    def guide_with(*locs):
        def guide(data):
            loc = pyro.param("loc", torch.tensor(locs))
            with pyro.plate("components", 3):
                pyro.sample("mu", dist.Normal(loc, 0.1))

        return guide

    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "steps": 1, "progress": False}
    for locs, said in (
        ((-5.0, 5.0, 30.0), "site 'z': 1 of 3 components are empty (2)"),
        ((-5.0, 5.0, 5.01), "site 'z': components say the same as others (1 and 2)"),
    ):
        result = fit(mixture, guide_with(*locs), data, **still)
        with result.fitted.applied():
            assert said in component_remarks(result.job)


def test_exact_updates():
    data = torch.cat([torch.randn(20) - 5, torch.randn(20) + 5])
    result = fit(BayesianGMM(2, sigma=1.0, tau=5.0), "cavi", data, seed=0, progress=False)
    report = result.diagnose(1_000, progress=False)
    assert (
        report.converged
        and report.signal is None
        and "exact updates" in report.left_out["gradients"]
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pyro.set_rng_seed(0)
    path = tmp_path_factory.mktemp("report") / "report.html"
    at_start(shift=1.0).report(path, num_draws=1_000, nuts_draws=50, progress=False)
    return path


def test_the_page_stands_by_itself(page):
    text = page.read_text("utf-8")
    outside = re.findall(r'(?:src|href)="(?!data:)|https?://|url\(|<script', text)
    assert outside == []
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == 5
    assert all(base64.b64decode(each).startswith(b"\x89PNG") for each in pictures)


def test_names_are_escaped(tmp_path):
    def named():
        pyro.sample("<b>z</b>", dist.Normal(0.0, 1.0))

    path = tmp_path / "report.html"
    fit(named, steps=5, progress=False).report(path, num_draws=100, progress=False)
    assert "<b>z" not in path.read_text("utf-8")


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    chrome = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if driver is None or chrome is None:
        pytest.skip("no headless browser is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def test_a_browser_shows_it(page, browser):
    size = {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    seen = json.loads(
        browser.execute_script(
            """return JSON.stringify({
                headings: [...document.querySelectorAll("h2")].map(h => h.innerText),
                drawn: [...document.images].every(i => i.complete && i.naturalWidth > 100),
                pictures: document.images.length,
                wide: document.documentElement.scrollWidth,
                widest: Math.max(...[...document.images].map(i => i.getBoundingClientRect().right)),
                letters: parseFloat(getComputedStyle(document.body).fontSize)})"""
        )
    )
    assert browser.get_log("browser") == []
    assert seen["headings"] == [
        "ELBO",
        "Importance weights",
        "KL from the prior",
        "Gradients",
        "Beside NUTS",
        "Posterior",
        "Settings",
    ]
    assert seen["drawn"] and seen["pictures"] == 5
    assert seen["wide"] <= 375 and seen["widest"] <= 375 and seen["letters"] >= 14
