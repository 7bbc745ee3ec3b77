"""What is said of each of the usual mistakes, whole: `tests/mistakes.py` has the programs."""

import importlib.util
import random
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vi import ELBO, CompileError, FitResult, fit

_SPEC = importlib.util.spec_from_file_location("mistakes", Path(__file__).with_name("mistakes.py"))
mistakes = importlib.util.module_from_spec(_SPEC)  # type: ignore[arg-type]
sys.modules["mistakes"] = mistakes
_SPEC.loader.exec_module(mistakes)  # type: ignore[union-attr]

Told = tuple[str, str]
"""The kind of an error or a warning, and its message, numbers of lines left out."""

MESSAGES: dict[str, Told] = {
    "to_event of a latent, exact updates": ("", ""),
    "to_event of a latent": (
        "ModelError",
        "site 'w' of the model: its distribution (Normal) has batch shape (3,), but no "
        "pyro.plate declares dimension -1 of size 3. If that is one value with several "
        "entries, add .to_event(1); if its elements are independent, put the site in "
        "pyro.plate('w_plate', 3, dim=-1).",
    ),
    "to_event of the data, an autoguide": (
        "ModelError",
        "site 'x' of the model, mistakes.py, line N (pyro.sample(\"x\", "
        "dist.Normal(w.expand(x.shape), 1.0), obs=x)): its distribution (Normal) has batch "
        "shape (12, 3), but plate 'data' needs 12 at dimension -1, not 3. Declare the last "
        "dimension as part of one value: .to_event(1).",
    ),
    "to_event of the data in batches": (
        "ModelError",
        "site 'x' of the model on a batch of 4 of the 12 rows, mistakes.py, line N "
        '(pyro.sample("x", dist.Normal(w.expand(x.shape), 1.0), obs=x)): its distribution '
        "(Normal) has batch shape (4, 3), but plate 'data' needs 4 at dimension -1, not 3. "
        "Declare the last dimension as part of one value: .to_event(1).",
    ),
    "to_event of the data": (
        "ModelError",
        "site 'x' of the model, mistakes.py, line N (pyro.sample(\"x\", "
        "dist.Normal(w.expand(x.shape), 1.0), obs=x)): its distribution (Normal) has batch "
        "shape (12, 3), but plate 'data' needs 12 at dimension -1, not 3. Declare the last "
        "dimension as part of one value: .to_event(1).",
    ),
    "to_event of data, one number expected": (
        "DataError",
        "site 'x': the observed values have shape (12, 3), but the distribution (Normal) has "
        "shape (12,). If the last dimension of the values belongs to one observation, give "
        "the distribution that shape with .expand([12, 3]).to_event(1).",
    ),
    "to_event in the guide": (
        "GuideError",
        "site 'w' of the guide: its distribution (Normal) has batch shape (3,), but no "
        "pyro.plate declares dimension -1 of size 3. If that is one value with several "
        "entries, add .to_event(1); if its elements are independent, put the site in "
        "pyro.plate('w_plate', 3, dim=-1).",
    ),
    "no plate in batches": (
        "ModelError",
        "the data come in batches (batch_size, Dataset or DataLoader), but no plate of the "
        "model follows the rows of a batch (plates: none). Put the sites of the data in "
        "pyro.plate('data', len(batch)), so that a batch can count for all 12 rows.",
    ),
    "no plate, exact updates": ("", ""),
    "no plate": (
        "DataError",
        "site 'x': the observed values have shape (12,), but the distribution (Normal) has "
        "shape (). Put the site in pyro.plate('x_plate', 12, dim=-1): every dimension over "
        "observations needs a plate.",
    ),
    "no plate in a regression": (
        "ModelError",
        "site 'y' of the model: its distribution (Normal) has batch shape (12,), but no "
        "pyro.plate declares dimension -1 of size 12. If that is one value with several "
        "entries, add .to_event(1); if its elements are independent, put the site in "
        "pyro.plate('y_plate', 12, dim=-1).",
    ),
    "no plate in the guide, in batches": (
        "GuideError",
        "site 'z' stands in the plate 'data' over the rows of a batch in the model, but not "
        "in the guide, so that its log q would not be scaled. Put it in a pyro.plate('data', "
        "...) in the guide too.",
    ),
    "no plate in the guide": (
        "GuideError",
        "site 'z' of the guide: its distribution (Normal) has batch shape (12,), but no "
        "pyro.plate declares dimension -1 of size 12. If that is one value with several "
        "entries, add .to_event(1); if its elements are independent, put the site in "
        "pyro.plate('z_plate', 12, dim=-1).",
    ),
    "scaled twice, exact updates": ("", ""),
    "scaled twice": (
        "ModelError",
        "site 'x': poutine.scale in the model counts it 3 times, and fit counts each of the 4"
        " rows of a batch for 3 as well, so that the data would count twice over. Take "
        "poutine.scale out of the model: fit scales by itself.",
    ),
    "never scaled": (
        "ModelError",
        "site 'y' of the model on a batch of 4 of the 12 rows, mistakes.py, line N "
        '(pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)): its distribution (Normal) has '
        "batch shape (4,), but plate 'data' needs 12 at dimension -1, not 4. The plate counts"
        " all 12 rows, but a batch has 4. Write pyro.plate('data', 12, "
        "subsample_size=len(batch)), or pyro.plate('data', len(batch)): fit counts a batch "
        "for all rows.",
    ),
    "a plate of a fixed batch": (
        "ModelError",
        "the data come in batches (batch_size, Dataset or DataLoader), but no plate of the "
        "model follows the rows of a batch (plates: 'data' of size 4). Plate 'data' has a "
        "fixed size: write pyro.plate('data', len(batch)).",
    ),
    "scaled up without batches": (
        "UserWarning",
        "site 'x': plate 'data' has size 1200, so that each of the 12 rows of the data counts"
        " 100 times. Pass all 1200 rows with batch_size=12, or give the plate the size of the"
        " data, len(data).",
    ),
    "subsampled twice": (
        "ModelError",
        'the model on a batch of 4 of the 12 rows, mistakes.py, line N (pyro.sample("x", '
        "dist.Normal(mean, 1.0), obs=x[rows])): plate 'data' takes 3 of 12 rows by itself, "
        "but the data are a batch of 4 rows already. Let fit subsample alone: "
        "pyro.plate('data', 12, subsample_size=len(batch)) with the batch as it is (no "
        "[index]), or leave batch_size out.",
    ),
    "a batch subsampled": (
        "ModelError",
        "the data come in batches (batch_size, Dataset or DataLoader), but no plate of the "
        "model follows the rows of a batch (plates: 'data' of size 2). Plate 'data' takes 2 "
        "of 4 rows by itself, so that rows are subsampled twice: leave it to fit with "
        "pyro.plate('data', 12, subsample_size=len(batch)) and the batch as it is, or leave "
        "batch_size out.",
    ),
    "enumeration and reshape, exact updates": ("", ""),
    "enumeration and reshape in batches": (
        "ModelError",
        "the model, mistakes.py, line N (labelled(x, lambda means, z: "
        "means[z.reshape(len(x))])) cannot take all states of site 'z' at once, as it is "
        "summed out: its value then has 2 states in a dimension on the left of the plates "
        "(shape '[4]' is invalid for input of size 2). Use it only in what broadcasts "
        "(mean[z], torch.where, pyro.ops.indexing.Vindex), without reshape, squeeze, stack, "
        "if, for or .item(); or draw it in the guide.",
    ),
    "enumeration and reshape": (
        "ModelError",
        "the model, mistakes.py, line N (labelled(x, lambda means, z: "
        "means[z.reshape(len(x))])) cannot take all states of site 'z' at once, as it is "
        "summed out: its value then has 2 states in a dimension on the left of the plates "
        "(shape '[12]' is invalid for input of size 2). Use it only in what broadcasts "
        "(mean[z], torch.where, pyro.ops.indexing.Vindex), without reshape, squeeze, stack, "
        "if, for or .item(); or draw it in the guide.",
    ),
    "enumeration and if": (
        "ModelError",
        'the model, mistakes.py, line N (pyro.sample("x", dist.Normal(means[0] if z else '
        "means[1], 1.0), obs=x)) cannot take all states of site 'z' at once, as it is summed "
        "out: its value then has 2 states in a dimension on the left of the plates (Boolean "
        "value of Tensor with more than one value is ambiguous). Use it only in what "
        "broadcasts (mean[z], torch.where, pyro.ops.indexing.Vindex), without reshape, "
        "squeeze, stack, if, for or .item(); or draw it in the guide.",
    ),
    "enumeration of a long chain": (
        "ModelError",
        'the model, mistakes.py, line N (z = pyro.sample(f"z{t}", '
        "dist.Categorical(torch.eye(2)[z] + 1.0))): each of the 70 discrete sites that are "
        "summed out, such as 'z62', takes a dimension of its own, and torch has 64. Write the"
        " loop over them with pyro.markov, so that they share dimensions, or draw them in the"
        " guide.",
    ),
    "too few dimensions for Pyro": (
        "GuideError",
        "objective: TraceEnum_ELBO(max_plate_nesting=0) leaves too few dimensions: plate "
        "'data' stands at dimension -1. Pass max_plate_nesting=1, or leave it out.",
    ),
    "a series in one plate, exact updates": ("", ""),
    "a series in one plate": (
        "UserWarning",
        "site 'x': the distribution of some elements of plate 'time' is computed from other "
        "rows of the data (x[1:] given x[:-1], for instance), though a plate declares its "
        "elements independent: batches, loo() and predict() take rows apart. Pass the other "
        "rows as an argument of their own, as in fit(model, guide, (x[:-1], x[1:])), or loop "
        "with pyro.markov.",
    ),
    "a series in one plate, in batches": (
        "UserWarning",
        "site 'x': the distribution of some elements of plate 'time' is computed from other "
        "rows of the data (x[1:] given x[:-1], for instance), though a plate declares its "
        "elements independent: batches, loo() and predict() take rows apart. Pass the other "
        "rows as an argument of their own, as in fit(model, guide, (x[:-1], x[1:])), or loop "
        "with pyro.markov.",
    ),
    "a scale of 0 in the guide, in batches": (
        "GuideError",
        'the guide, mistakes.py, line N (pyro.sample("mean", dist.Normal(pyro.param("loc", '
        "torch.tensor(0.0)), scale))): scale of Normal is 0, but it has to be above 0. It "
        "comes from parameter 'scale', which starts at 0: start it inside, for instance "
        "pyro.param('scale', torch.tensor(0.1), constraint=constraints.positive).",
    ),
    "a scale of 0 in the guide": (
        "GuideError",
        'the guide, mistakes.py, line N (pyro.sample("mean", dist.Normal(pyro.param("loc", '
        "torch.tensor(0.0)), scale))): scale of Normal is 0, but it has to be above 0. It "
        "comes from parameter 'scale', which starts at 0: start it inside, for instance "
        "pyro.param('scale', torch.tensor(0.1), constraint=constraints.positive).",
    ),
    "a scale of 0 in the model, exact updates": ("", ""),
    "a scale of 0 in the model": (
        "ModelError",
        'the model, mistakes.py, line N (pyro.sample("x", dist.Normal(mean, noise), obs=x)): '
        "scale of Normal is 0, but it has to be above 0. It comes from parameter 'noise', "
        "which starts at 0: start it inside, for instance pyro.param('noise', "
        "torch.tensor(0.1), constraint=constraints.positive).",
    ),
    "a scale that starts at 0": (
        "ModelError",
        "initial_values: 'width' starts outside the support of HalfNormal "
        "(GreaterThanEq(lower_bound=0.0)), or on its edge, where no step could leave it. "
        "Start it inside.",
    ),
    "a start of another shape": (
        "ModelError",
        "initial_values: 'mean' has shape (3,), but the site has (). Give one value for each "
        "of its entries.",
    ),
    "a start that is misspelt": (
        "ModelError",
        "initial_values: 'maen' is no latent site and no parameter. Those are 'mean': correct"
        " the name, or leave it out.",
    ),
    "a start that is misspelt, exact updates": (
        "ModelError",
        "initial_values: 'maen' is no continuous latent or parameter of the model. Those are "
        "'mean': leave 'maen' out, or name one of them.",
    ),
    "a support that is too wide, in batches": (
        "GuideError",
        "site 'width': the guide's distribution (Normal, support Real()) can draw values "
        "outside the model's support (HalfNormal, GreaterThanEq(lower_bound=0.0)). Use a "
        "distribution on that support in the guide, LogNormal or Gamma.",
    ),
    "a support that is too wide": (
        "GuideError",
        "site 'width': the guide's distribution (Normal, support Real()) can draw values "
        "outside the model's support (HalfNormal, GreaterThanEq(lower_bound=0.0)). Use a "
        "distribution on that support in the guide, LogNormal or Gamma.",
    ),
    "data outside the support, exact updates": ("", ""),
    "data outside the support": (
        "DataError",
        "site 'x': some observed values are NaN, infinite or outside the support of Poisson "
        "(IntegerGreaterThan(lower_bound=0)): they go from -1 to 2. Correct the data, or take"
        " a distribution with such values.",
    ),
    "a latent outside a parameter's range": (
        "ModelError",
        'the model, mistakes.py, line N (pyro.sample("x", dist.Normal(0.0, width), obs=x)): '
        "scale of Normal is -1.459, but it has to be above 0; it is the value of site "
        "'width'. Give 'width' a prior on such numbers (HalfNormal or Gamma for positive "
        "ones, Beta between 0 and 1), or transform it first (.exp(), torch.sigmoid).",
    ),
    "data on two devices": (
        "DataError",
        "`data[1]` is on the device meta, which keeps no numbers. Pass real data.",
    ),
    "float64 data, exact updates": ("", ""),
    "float64 data in batches": (
        "ModelError",
        'the model on a batch of 4 of the 12 rows, mistakes.py, line N (pyro.sample("y", '
        "dist.Normal(x @ w, 1.0), obs=y)): numbers of two precisions meet (torch.float64: "
        "argument 'x', argument 'y'; torch.float32: site 'w'). Pass x.float(), or compute all"
        " in float64: torch.set_default_dtype(torch.float64) before the model, its parameters"
        " and the guide are made.",
    ),
    "float64 data": (
        "ModelError",
        'the model, mistakes.py, line N (pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)): '
        "numbers of two precisions meet (torch.float64: argument 'x', argument 'y'; "
        "torch.float32: site 'w'). Pass x.float(), or compute all in float64: "
        "torch.set_default_dtype(torch.float64) before the model, its parameters and the "
        "guide are made.",
    ),
    "float64 data that are promoted": (
        "UserWarning",
        "argument 'x' is torch.float64, but site 'mean' and its parameters are torch.float32,"
        " so that the fit is no more exact than float32. Pass x.float(), or call "
        "torch.set_default_dtype(torch.float64) before the model and the guide are made.",
    ),
    "a constant on another device, exact updates": ("", ""),
    "a constant on another device": (
        "ModelError",
        "the model, mistakes.py, line N (w = weights() * FAR): tensors on two devices meet "
        "(the arguments are on cpu, and a tensor that the program holds is elsewhere; torch "
        "says: Tensor on device meta is not on the expected device cpu!). Move what the "
        "program makes or holds to the device of the data, tensor.to(x.device), and the data "
        "with fit(device=...).",
    ),
    "float labels in batches": (
        "DataError",
        "site 'y': the observed labels are torch.float32, but Categorical takes whole "
        "numbers. Pass integers, for instance labels.long().",
    ),
    "float labels": (
        "DataError",
        "site 'y': the observed labels are torch.float32, but Categorical takes whole "
        "numbers. Pass integers, for instance labels.long().",
    ),
    "labels that count from 1": (
        "ModelError",
        'the model, mistakes.py, line N (pyro.sample("y", dist.Normal(mean[group], 1.0), '
        "obs=y)): argument 'group' has values from 1 to 3, but indexes a dimension of size 3,"
        " whose labels are 0 to 2. Count the labels from 0, or make that dimension (its "
        "plate) larger.",
    ),
    "float labels as an index, exact updates": ("", ""),
    "float labels as an index": (
        "ModelError",
        'the model, mistakes.py, line N (pyro.sample("y", dist.Normal(mean[group], 1.0), '
        "obs=y)): labels that index a tensor have to be whole numbers, but argument 'group' "
        "is torch.float32. Pass group.long().",
    ),
    "obs forgotten, exact updates": ("", ""),
    "obs forgotten": (
        "UserWarning",
        "the model is given data ('x'), but observes none of its sites, so that the fit returns its "
        "prior. Was obs= forgotten at site 'x', as in pyro.sample('x', distribution, obs=x)?",
    ),
    "an error of the model's own, an autoguide": (
        "ModelError",
        "the model could not run (at or after site 'mean', mistakes.py, line N "
        "(x.frobnicate()  # type: ignore[attr-defined])): AttributeError: 'Tensor' object has"
        " no attribute 'frobnicate'. Correct it, or the data that it is called with.",
    ),
    "an error of the model's own": (
        "ModelError",
        "the model could not run (at or after site 'mean', mistakes.py, line N "
        "(x.frobnicate()  # type: ignore[attr-defined])): AttributeError: 'Tensor' object has"
        " no attribute 'frobnicate'. Correct it, or the data that it is called with.",
    ),
    "effects narrower than the data": (
        "DataError",
        "site 'x': the observed values have shape (3, 4), but the distribution (Normal) has "
        "shape (3, 1). The distribution has (1,) entries for each observation, the values "
        "(4,): give its parameters that shape before .to_event().",
    ),
}


def told(**arguments: Any) -> Told:
    """What a fit says, at once; of warnings the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises((Exception, UserWarning)) as caught:
            fit(**{"steps": 2, "progress": False, "callbacks": [_a_step], **arguments})
    return type(caught.value).__name__, re.sub(r"line \d+", "line N", str(caught.value))


def _a_step(progress: Any) -> None:
    raise AssertionError("a step was taken")


@pytest.mark.parametrize("name", mistakes.CASES)
def test_the_whole_message(name: str) -> None:
    kind, message = MESSAGES[name]
    exact = name.endswith("exact updates")  # as those of gradients, where nothing else is said
    if exact and not message:
        kind, message = MESSAGES[name.removesuffix(", exact updates")]
    assert told(**mistakes.CASES[name]) == (kind, message)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, (kind, _) in MESSAGES.items() if kind == "UserWarning"])
def test_what_is_only_suspected_is_fitted(name: str) -> None:
    arguments = {**mistakes.CASES[name], "guide": "normal"}
    with pytest.warns(UserWarning, match="site|data"):
        result = fit(**arguments, steps=2, progress=False)
    assert result.num_steps == 2


def test_a_line_that_draws_outside_torch_is_named() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        noise = random.random()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + 0.001 * noise, 1.0), obs=x)

    with pytest.raises(CompileError) as caught:
        fit(model, data=mistakes.X, steps=2, compile=True, progress=False)
    assert re.sub(r"line \d+", "line N", str(caught.value)) == (
        "compile=True: test_errors.py, line N (noise = random.random()) draws from Python's random "
        "module, outside torch. Correct it, or pass compile='auto' to run such steps eager."
    )


# NaN


def walled(x: Tensor) -> None:
    """Steps that are too long jump over the wall at 5."""
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.factor("wall", (5.0 - z).log())


def narrow_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("z", dist.Normal(loc, 0.01))
    pyro.sample("other", dist.Normal(pyro.param("elsewhere", torch.tensor(0.0)), 1.0),
                infer={"is_auxiliary": True})  # fmt: skip


def hasty(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.15)


TALL = torch.full((12,), 4.0)
SETTINGS: dict[str, Any] = {
    "objective": ELBO(2), "optimizer": hasty, "seed": 0, "progress": False, "steps": 250,
}  # fmt: skip


@pytest.mark.parametrize(
    "compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_a_number_that_is_not_finite_is_told_whole(compile: bool) -> None:
    with pytest.raises(FloatingPointError) as caught:
        fit(walled, narrow_guide, TALL, compile=compile, **SETTINGS)
    assert str(caught.value) == (
        "step 2: the loss is nan; log-probabilities that are not finite: 'wall' (parameters behind it: "
        "'loc'). Lower the learning rate, start nearer to the data (initial_values), or pass "
        "on_nan='rollback' to go on with "
        "smaller steps or on_nan='skip' to leave such steps out."
    )


def test_a_gradient_that_is_not_finite_names_site_and_parameter() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = pyro.param("edge", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + torch.sqrt(scale), 1.0), obs=x)

    with pytest.raises(FloatingPointError) as caught:
        fit(model, "normal", TALL, steps=3, progress=False)
    assert str(caught.value) == (
        "step 1: a gradient is not finite; the log-probability of 'x' is finite, its gradient is not; "
        "gradients that are not finite: 'edge'. Lower the learning rate, start nearer to the data "
        "(initial_values), or pass on_nan='rollback' to go on with smaller steps or on_nan='skip' to "
        "leave such steps out."
    )


def rolled_back(compile: Any, **settings: Any) -> FitResult:
    return fit(
        walled, narrow_guide, TALL, compile=compile, on_nan="rollback", **{**SETTINGS, **settings}
    )


def test_rolling_back_reaches_the_optimum() -> None:
    """The mode of the sum: 12 (4 - z) - z / 100 = 1 / (5 - z)."""
    result = rolled_back(False)
    assert 0 < result.losses.isnan().sum() <= 10
    loc = result.params["loc"].item()
    assert abs(12 * (4 - loc) - loc / 100 - 1 / (5 - loc)) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [hasty, lambda p: torch.optim.lr_scheduler.ExponentialLR(
    torch.optim.Adam(p, lr=3.0), 0.999)], ids=["SGD", "Adam, falling"])  # fmt: skip
def test_compiled_steps_roll_back_as_eager_ones_do(optimizer: Callable[[Any], Any]) -> None:
    eager, compiled = (rolled_back(compile, optimizer=optimizer) for compile in (False, True))
    assert compiled.execution.mode == "compiled"
    assert eager.losses.isnan().any()
    assert torch.equal(eager.losses.isnan(), compiled.losses.isnan())
    torch.testing.assert_close(compiled.params, eager.params, rtol=1e-3, atol=1e-3)


def test_captured_steps_roll_back_as_eager_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_vi.compilation import choosing

    monkeypatch.setattr(choosing, "FEW_STEPS", 1)
    monkeypatch.setattr(choosing, "repays", lambda graph, steps: False)
    eager, captured = (rolled_back(compile) for compile in (False, "auto"))
    assert captured.execution.mode == "captured"
    assert torch.equal(eager.losses.isnan(), captured.losses.isnan())
    torch.testing.assert_close(captured.params, eager.params, rtol=1e-3, atol=1e-3)


def test_rolling_back_ends_after_ten_times() -> None:
    def model(x: Tensor) -> None:
        walled(x)
        bias = pyro.param("bias", torch.tensor(1.0))
        pyro.factor("pit", torch.where(bias > 0.999, bias, torch.nan))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.01))

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-3, maximize=True, weight_decay=10.0)

    with pytest.raises(FloatingPointError) as caught:
        fit(model, guide, TALL, steps=400, optimizer=optimizer, on_nan="rollback", progress=False,
            objective=ELBO(2), seed=0, compile=False)  # fmt: skip
    assert re.sub(r"step \d+", "step N", str(caught.value)) == (
        "step N: the loss is nan; log-probabilities that are not finite: 'pit' (parameters "
        "behind it: 'bias'). Went back 10 times to "
        "smaller steps, which did not help: look at that site for a logarithm or a division at 0, or "
        "an overflow, or start nearer to the data (initial_values)."
    )


def test_nothing_to_go_back_to_is_told() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        root = torch.sqrt(pyro.param("edge", torch.tensor(0.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + root, 1.0), obs=x)

    with pytest.raises(FloatingPointError) as caught:
        fit(model, "normal", TALL, steps=3, on_nan="rollback", progress=False)
    assert str(caught.value) == (
        "step 1: a gradient is not finite; the log-probability of 'x' is finite, its gradient is not; "
        "gradients that are not finite: 'edge'. There was no good step to go back to: look at "
        "that site "
        "for a logarithm or a division at 0, or an overflow, or start nearer to the data "
        "(initial_values)."
    )


def test_the_optimizer_goes_back_too() -> None:
    """Adam's moments: after the same steps as a fit that stopped there, but for the rate."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    from ppl_vi.stepping.optimization import make_stepper

    stepper = make_stepper(lambda p: torch.optim.Adam(p, lr=0.1), {"p": parameter}, 10)

    def step(gradient: float) -> None:
        parameter.grad = torch.full_like(parameter, gradient)
        stepper.step({"p": parameter}, 0.0)

    step(1.0)
    good = stepper.saved({"p": parameter})
    step(5.0)
    after = parameter.detach().clone()
    stepper.bring_back(good, {"p": parameter})
    step(5.0)
    assert torch.equal(parameter.detach(), after)
    stepper.bring_back(good, {"p": parameter})
    stepper.slow_down(0.5)
    before = parameter.detach().clone()
    step(5.0)
    torch.testing.assert_close(parameter.detach() - before, 0.5 * (after - before))


def test_a_sweep_that_is_not_finite_names_the_site() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)

    with pytest.raises(FloatingPointError) as caught:
        fit(model, "cavi", torch.full((4,), 1e30), progress=False)
    assert re.match(
        r"sweep \d+: the ELBO is -?(nan|inf); factors that are not finite: '", str(caught.value)
    )


# No false alarms


def test_good_programs_are_not_told_of() -> None:
    def standardized(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        scaled = (x[:, 0] - x[:, 0].mean()) / x[:, 0].std()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * scaled, 1.0), obs=x[:, 1] - x[:, 1].mean())

    def walk(x: Tensor) -> None:
        with pyro.plate("time", len(x)):
            step = pyro.sample("step", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(step.cumsum(-1), 1.0), obs=x)

    def tempered(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def learned(x: Tensor) -> None:
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, noise), obs=x)

    fit(standardized, data=mistakes.MATRIX, steps=2, progress=False)
    fit(walk, data=mistakes.X, steps=2, progress=False)
    for model in (tempered, learned):
        fit(model, data=mistakes.X, batch_size=4, steps=2, progress=False)
