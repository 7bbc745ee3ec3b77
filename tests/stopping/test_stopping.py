"""When a fit stops, what it says of it, and what it gives back when it is stopped."""

import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.signal import lfilter

from ppl_vi import StopReason, fit
from ppl_vi.stepping.optimization import StagedRate
from ppl_vi.stepping.rate_search import RATES, searched_rate
from ppl_vi.stopping.averaging import TailAverage
from ppl_vi.stopping.convergence import ConvergenceRule, stop_step
from ppl_vi.stopping.watching import Watch

WINDOW, TRACES = 400, 200
X = torch.linspace(-1.0, 3.0, 50)


def falling(height, time):
    return lambda t: height * np.exp(-t / time)


def drift(height, time):
    return lambda t: height * np.clip(1 - t / time, 0, None)


def normal(generator, shape):
    return generator.standard_normal(shape)


def student(generator, shape):
    return generator.standard_t(3, shape) / 3**0.5


def dependent(generator, shape):
    """Correlated by 0.8 from step to step, of long-run standard deviation 1."""
    steps = generator.standard_normal((shape[0], shape[1] + 100))
    return lfilter([0.2], [1.0, -0.8], steps, axis=-1)[:, 100:]


FAMILIES = {
    "flat": (np.zeros_like, normal),
    "flat, heavy tails": (np.zeros_like, student),
    "flat, dependent": (np.zeros_like, dependent),
    "exponential": (falling(10, 1.0), normal),
    "slow exponential": (falling(30, 3.0), normal),
    "exponential, heavy tails": (falling(10, 1.0), student),
    "drift": (drift(3, 4), normal),
    "drift near the limit": (drift(2.4, 6), normal),  # eight standard errors of a mean a window
    "power law": (lambda t: 30 / (1 + 10 * t) ** 2, normal),
    "two levels": (lambda t: 2.0 * (t < 0.5), normal),
    "a level on the way": (lambda t: 30 * np.exp(-t / 0.1) + 1.0 * (t < 0.8), normal),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rule_stops_in_time_and_not_before(name):
    """Under 1 % each; of 200 traces 7 or more do so with a chance under 0.5 % at that rate."""
    excess, noise = FAMILIES[name]
    above = np.flatnonzero(excess(np.arange(100 * WINDOW) / WINDOW) >= WINDOW**-0.5)
    ideal = above[-1] + 1 if len(above) else 0
    steps = 2 * (ideal + WINDOW)
    generator = np.random.default_rng(5)
    losses = excess(np.arange(steps) / WINDOW) + noise(generator, (TRACES, steps))
    stop = stop_step(losses, WINDOW)
    assert ((stop > 0) & (stop < ideal)).sum() < 7
    assert (stop == 0).sum() < 7


def test_the_rule_knows_no_unit_and_no_pieces():
    losses = np.random.default_rng(1).standard_normal(8_000) + 5 * np.exp(-np.arange(8_000) / 300)
    stop = stop_step(losses, WINDOW)
    assert stop_step(1e6 * losses - 1e9, WINDOW) == stop > 0
    rule = ConvergenceRule(WINDOW)
    said = [bool(rule.update(losses[i : i + 37])) for i in range(0, 8_000, 37)]
    assert rule.stopped == stop and said.index(True) == (stop - 1) // 37


def test_numbers_that_are_not_finite_are_left_out():
    losses = np.random.default_rng(2).standard_normal(4_000)
    losses[::7] = np.nan
    losses[::50] = np.inf
    assert 0 < stop_step(losses, WINDOW) <= 2 * WINDOW
    assert stop_step(np.full(4_000, np.nan), WINDOW) == 0


def test_a_block_without_a_number_keeps_it_from_stopping():
    losses = np.random.default_rng(2).standard_normal(12_000)
    losses[2_000:3_000] = np.nan
    steps = stop_step(losses[:2_000], WINDOW), stop_step(losses[1_500:], WINDOW)
    assert steps[0] == 2 * WINDOW
    # Before the part that is looked at, half of the trace and a window, they do not matter.
    assert 2 * (1_500 + WINDOW) - 100 < steps[1] < 2 * (1_500 + WINDOW) + 200


def test_no_noise_is_no_hindrance():
    assert stop_step(np.full(4_000, -3.7), WINDOW) == 2 * WINDOW
    assert stop_step(-0.01 * np.arange(40_000), WINDOW) == 0


@pytest.mark.parametrize("height", [1e2, 1e4, 1e6, 1e8])
def test_a_climb_that_bends_is_not_taken_for_noise(height):
    """However high it began: what is left about a line would be correlated, and large."""
    time = 0.4 * WINDOW
    ideal = time * np.log(height * WINDOW**0.5)
    noise = np.random.default_rng(7).standard_normal((20, int(2 * (ideal + WINDOW))))
    stop = stop_step(noise + height * np.exp(-np.arange(noise.shape[1]) / time), WINDOW)
    assert (stop > ideal).all()


def test_a_number_is_a_gain_in_nats():
    noise = 0.01 * np.random.default_rng(3).standard_normal(20_000)
    climb = 10 * np.exp(-np.arange(20_000) / 2_000)
    coarse, fine = (stop_step(noise + climb, WINDOW, tol) for tol in (1.0, 0.1))
    assert 0 < coarse < fine
    assert stop_step(100 * noise, WINDOW, tol=0.01) == 0  # such noise hides a gain so small


def test_a_window_too_short_is_refused():
    with pytest.raises(ValueError, match="40 or more"):
        ConvergenceRule(10)


def test_the_mean_of_the_last_iterates():
    average = TailAverage()
    for step in range(1, 101):
        average.add(step, [torch.tensor([float(step)])])
    assert len(average._parts) < 40
    for since in (0, 40, 64, 99, 200):
        mean = average.mean(since)[0].item()
        first = max(since + 1, 1) if since < 100 else 100
        assert abs(mean - (first + 100) / 2) <= 4  # a part that began before is left out whole


def test_a_rest_is_averaged_over_its_later_half():
    parameter, noise = torch.zeros(1, requires_grad=True), np.random.default_rng(0)
    rate = StagedRate(torch.optim.Adam([parameter], lr=0.05))
    watch = Watch("auto", 10_000, rate, lambda: [parameter])
    for step in range(100, 3_000, 100):
        with torch.no_grad():
            parameter.fill_(8.0 if step <= 300 else 0.0)  # so noisy a loss does not show it
        watch.sees(noise.standard_normal(100).tolist())
        if rate.rate < 0.05:
            break
    assert rate.rate < 0.05 and parameter.item() == 0.0


def test_a_gain_that_the_noise_hides_is_told():
    watch = Watch(1e-6, 3_000, None, lambda: [])
    noise = np.random.default_rng(0).standard_normal((30, 100))
    assert not any([watch.sees(losses.tolist()) for losses in noise])
    told = watch.told(StopReason.STEPS)
    assert told.verdict is StopReason.NOISE
    assert "gains under" in told.advice[0]


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.fixture
def short(monkeypatch):
    """Stages that a test has time for."""
    monkeypatch.setattr("ppl_vi.stopping.watching.WINDOW", 120)
    monkeypatch.setattr("ppl_vi.stopping.watching.STAGE_WINDOW", 120)
    monkeypatch.setattr("ppl_vi.stopping.watching._FEWEST", 600)
    monkeypatch.setattr("ppl_vi.stopping.watching._AVERAGED", 300)


def fitted(**settings):
    return fit(model, data=X, seed=0, **{"progress": False, "steps": 3_000, **settings})


def test_a_fit_stops_where_the_bound_rests_and_runs_may_be_cut(short):
    rates = set()
    result = fitted()
    cut = fitted(callbacks=[lambda progress: rates.add(progress.step)])
    assert result.stop_reason is StopReason.CONVERGED and len(rates) == cut.num_steps
    assert 600 <= result.num_steps == len(result.losses) < 3_000
    convergence = result.convergence
    assert convergence.verdict is result.stop_reason and "since step" in str(convergence)
    assert 0 < convergence.step < result.num_steps and convergence.standard_error > 0
    torch.testing.assert_close(cut.losses, result.losses)
    for name, value in result.params.items():
        torch.testing.assert_close(value, cut.params[name])


@pytest.mark.slow
def test_eager_steps_and_compiled_ones_stop_alike(short):
    captured, eager, compiled = (fitted(compile=wish) for wish in ("auto", False, True))
    assert captured.execution.mode == "captured" and compiled.execution.mode == "compiled"
    for other in (eager, compiled):
        torch.testing.assert_close(captured.losses, other.losses, rtol=1e-3, atol=1e-3)


def test_no_tolerance_and_few_steps_are_taken_to_the_end_in_silence(short):
    assert fitted(tol=None, steps=700).num_steps == 700
    few = fitted(steps=150)
    assert few.num_steps == 150 and few.stop_reason is StopReason.STEPS and not few.remarks
    assert few.convergence.step is None


def slow(parameters):
    return torch.optim.SGD(parameters, lr=1e-5)


def far_model(x):
    mean = pyro.param("mean", torch.tensor(200.0))
    noise = pyro.sample("noise", dist.Normal(0.0, 0.01))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean + noise, 1.0), obs=x)


def test_a_bound_that_still_climbs_is_told(short):
    with pytest.warns(UserWarning, match=r"still climbed, by .* nats .* Pass more steps"):
        result = fit(far_model, "normal", X, optimizer=slow, steps=400, seed=0, progress=False)
    assert result.stop_reason is StopReason.CLIMBING and "still climbed" in result.remarks[0]
    assert result.convergence.gain > 2 * result.convergence.standard_error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {"optimizer": slow, "steps": 400, "seed": 0, "progress": False}
        silent = fit(far_model, "normal", X, tol=None, **settings)
    assert silent.stop_reason is StopReason.STEPS


def test_an_optimizer_of_the_users_own_is_only_stopped(short):
    def still(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    result = fitted(optimizer=still)
    assert result.stop_reason is StopReason.CONVERGED and result.num_steps <= 300
    for value, start in zip(result.fitted.values, result.start.values, strict=True):
        torch.testing.assert_close(value, start)


def test_noise_that_hides_a_nat_is_told(short):
    def wide(x):
        location = pyro.param("location", torch.tensor(0.0))
        pyro.sample("mean", dist.Normal(location, 30.0))

    def still(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    result = fit(model, wide, X, optimizer=still, steps=3_000, seed=0, progress=False)
    assert result.stop_reason is StopReason.NOISE
    assert "num_particles" in result.remarks[0] and "nats would not show" in result.remarks[0]


def test_weights_on_kl_terms_come_to_rest_first(short):
    result = fitted(
        kl_schedule=lambda step: min(1.0, step / 1_000),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.0),
        steps=2_000,
    )
    assert 1_000 < result.num_steps < 2_000 and result.convergence.step >= 1_000


@pytest.mark.parametrize("tol", [0.0, -1.0, True, "tight", float("nan")])
def test_tolerances_that_mean_nothing_are_refused(tol):
    with pytest.raises(ValueError, match=r"tol must be 'auto', None or a number of nats"):
        fitted(tol=tol)


@pytest.mark.slow
def test_the_rate_is_searched_for_on_request(monkeypatch):
    rates = []

    def note(*args):
        rates.append(searched_rate(*args))
        return rates[-1]

    monkeypatch.setattr("ppl_vi.attempts.searched_rate", note)
    one, other = (fitted(optimizer="search", steps=20) for _ in range(2))
    assert rates[0] == rates[1] in RATES
    torch.testing.assert_close(one.losses, other.losses, rtol=0, atol=0)
    wide = {"x": torch.full((20,), 1_000.0)}  # far from where the guide starts: the widest steps
    started = {"optimizer": "search", "steps": 1, "seed": 0, "progress": False}
    fit(far_model, "normal", wide, **started)
    assert rates[-1] == max(RATES)


def press(progress):
    if progress.step == 30:
        raise KeyboardInterrupt


def ctrl_c(progress):
    if progress.step == 30:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("usual_interrupts")
@pytest.mark.parametrize("callback", [press, ctrl_c])
def test_an_interrupted_fit_gives_what_it_has(callback):
    handler = signal.getsignal(signal.SIGINT)
    result = fitted(callbacks=[callback], steps=200, tol=None)
    assert result.stop_reason is StopReason.INTERRUPTED and result.num_steps == 30
    assert result.sample(5)["mean"].isfinite().all()
    assert signal.getsignal(signal.SIGINT) is handler
    # Parameters and rate are those of a fit that a callback stopped there.
    stopped = fitted(callbacks=[lambda progress: progress.step == 30], steps=200, tol=None)
    for name, value in stopped.params.items():
        torch.testing.assert_close(result.params[name], value, rtol=0, atol=0)


def test_an_interrupt_ends_all_restarts():
    seen = []

    def callback(progress):
        seen.append(progress.step)
        if len(seen) == 70:
            raise KeyboardInterrupt

    result = fitted(callbacks=[callback], steps=50, restarts=4)
    assert [restart.num_steps for restart in result.restarts] == [50, 20]
    reasons = [restart.stop_reason for restart in result.restarts]
    assert reasons == [StopReason.STEPS, StopReason.INTERRUPTED]


def test_restarts_are_compared_on_the_same_draws():
    result = fitted(steps=20, restarts=3)
    bounds = [restart.bound for restart in result.restarts]
    assert len(bounds) == 3 and result.bound == max(bounds)
    assert "after 20 steps" in str(result.restarts[0])
    assert fitted(steps=20).restarts == ()


def test_sweeps_have_tolerances_too():
    def sweep(**settings):
        return fit(factors, "cavi", X, seed=0, progress=False, compile=False, **settings)

    rested, coarse = sweep(), sweep(tol=0.1)
    assert rested.stop_reason is coarse.stop_reason is StopReason.CONVERGED
    assert coarse.num_steps < rested.num_steps
    assert coarse.convergence.gain <= 0.1
    assert sweep(tol=None, steps=rested.num_steps + 5).num_steps == rested.num_steps + 5
    short = sweep(steps=2)
    assert short.stop_reason is StopReason.CLIMBING and "last sweep" in short.remarks[0]


def factors(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, precision**-0.5), obs=x)


def test_interrupted_sweeps_give_what_they_have():
    def callback(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    result = fit(factors, "cavi", X, seed=0, progress=False, compile=False, callbacks=[callback])
    assert result.stop_reason is StopReason.INTERRUPTED and result.num_steps == 2
    assert result.sample(5)["mean"].isfinite().all()


PROGRAM = """
import os, signal, threading
import torch, pyro, pyro.distributions as dist
from ppl_vi import fit

def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

threading.Timer(25.0, os.kill, (os.getpid(), signal.SIGINT)).start()
result = fit(model, data=torch.ones(50), steps=10**8, tol=None, compile=%s, progress=False)
print(result.stop_reason.name, result.num_steps == len(result.losses) > 0, result.execution.mode)
print(round(result.sample(2_000)["mean"].mean().item(), 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("wish", "mode"), [("False", "eager"), ("True", "compiled")])
def test_a_signal_ends_a_fit_between_two_steps(wish, mode):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % wish],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )
    assert done.stdout.split() == ["INTERRUPTED", "True", mode, "1.0"], done.stderr
