"""Minibatches count for the whole data set: bound and gradient, averaged over an epoch, are exact."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_vi import ELBO, Progress, ScoreFunctionELBO, fit
from ppl_vi.guides import EncoderGuide

N, BATCH = 11, 4  # batches of 4, 4 and 3
SIZES = torch.tensor([4, 4, 3], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision(monkeypatch):
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr("ppl_vi.evaluation._MOST_DRAWS", 16)  # the same ones in every fit
    yield
    torch.set_default_dtype(torch.float32)


class Data(NamedTuple):
    x: Tensor
    noise: Tensor  # what a guide draws for a row, given as data so that it is the same in any batch


def data() -> Data:
    return Data(torch.randn(N, 3), torch.randn(N, 2))


class DictRows(Dataset):
    def __init__(self, rows: Data) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: leaf[i] for name, leaf in self.rows._asdict().items()}


FORMS: dict[str, Callable[[Data], Any]] = {
    "tuple": tuple,
    "dict": lambda rows: rows._asdict(),
    "TensorDataset": lambda rows: TensorDataset(*rows),
    "Dataset": DictRows,
    "DataLoader": lambda rows: DataLoader(TensorDataset(*rows), batch_size=BATCH, shuffle=True),
}


def subsampled(x: Tensor) -> Any:
    return pyro.plate("data", N, subsample_size=len(x))


def of_batch(x: Tensor) -> Any:
    return pyro.plate("data", len(x))


PLATES = {"batch's plate": of_batch, "subsampled plate": subsampled}


def positive(name: str, value: Any) -> Tensor:
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def global_guide(shape: tuple[int, ...] = ()) -> None:
    torch.manual_seed(0)  # the same draws in every batch
    loc = pyro.param("loc", torch.linspace(-1, 1, 6)[: torch.Size(shape).numel()].reshape(shape))
    pyro.sample("mean", dist.Normal(loc, positive("scale", 0.7)).to_event(len(shape)))


def normal_normal(plate: Any) -> tuple[Any, Any]:
    def model(x, noise):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with plate(x):
            pyro.sample("x", dist.Normal(mean, positive("width", 1.5)).to_event(1), obs=x)

    return model, lambda x, noise: global_guide((3,))


def mixture(plate: Any) -> tuple[Any, Any]:
    def model(x, noise):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        with plate(x):
            z = pyro.sample("z", dist.Categorical(weights))
            centers = mean[..., z] if mean.dim() == 1 else mean[..., 0, :].gather(-1, z)
            pyro.sample("x", dist.Normal(centers, 1.0), obs=x[:, 0])

    return model, lambda x, noise: global_guide((2,))


def autoencoder(plate: Any) -> tuple[Any, Any]:
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x, noise):
        pyro.module("decoder", decoder)
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.8).to_event(1), obs=x)

    def guide(x, noise):
        pyro.module("encoder", encoder)
        with plate(x):
            loc, log_scale = encoder(x).chunk(2, -1)
            sample_given("z", dist.Normal(loc, log_scale.exp()).to_event(1), noise)

    return model, guide


def sample_given(name: str, q: Any, noise: Tensor) -> None:
    """Draw ``loc + scale * noise``, scored as the Normal that it stands for."""
    value = q.base_dist.loc + q.base_dist.scale * noise
    pyro.sample(name, dist.Delta(value, log_density=q.log_prob(value), event_dim=1))


def local_parameters(plate: Any) -> tuple[Any, Any]:
    def model(x, noise):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with plate(x):
            z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x[:, :2])

    def guide(x, noise):
        global_guide((2,))
        with subsampled(x):
            loc = pyro.param("z_loc", torch.linspace(-1, 1, 2 * N).reshape(N, 2), event_dim=1)
            width = pyro.param(
                "z_scale", torch.linspace(0.5, 1, N), constraint=constraints.positive, event_dim=0
            )
            sample_given("z", dist.Normal(loc, width.unsqueeze(-1)).to_event(1), noise)

    return model, guide


class RowNoise(Messenger):
    """Draws the local latent of a guide from the noise of its rows."""

    def __init__(self, noise: Tensor, name: str = "z_unconstrained") -> None:
        super().__init__()
        self.noise, self.name = noise, name

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            q = msg["fn"].base_dist
            msg["value"], msg["done"] = q.loc + q.scale * self.noise, True


def autonormal(plate: Any) -> tuple[Any, Any]:
    model, _ = local_parameters(plate)
    auto = AutoNormal(model, create_plates=lambda x, noise: [subsampled(x)])

    def guide(x, noise):
        torch.manual_seed(0)
        with RowNoise(noise):
            return auto(x, noise)

    return model, guide


def encoded(plate: Any) -> tuple[Any, Any]:
    """The same autoencoder with an ``EncoderGuide``, which is handed the noise as data too."""
    model, _ = autoencoder(plate)
    encoder = nn.Linear(3, 4)

    def network(x, noise):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        return loc, log_scale.exp()

    inner = EncoderGuide(network).completed(model)

    def guide(x, noise):
        with RowNoise(noise, "z"):
            return inner(x, noise)

    return model, guide


class Epoch(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor]
    elbo: float


def one_epoch(pair: Any, data: Any, objective: Any, batch_size: int | None) -> Epoch:
    """Loss and gradients of an epoch that moves no parameter, averaged by rows."""
    gradients: list[dict[str, Tensor]] = []

    def note(progress: Progress) -> None:
        named = pyro.get_param_store().named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named})

    weights = torch.ones(1) if isinstance(data, tuple | dict) and not batch_size else SIZES / N
    result = fit(
        *pair,
        data,
        objective=objective,
        optimizer=still,
        steps=len(weights),
        batch_size=batch_size,
        callbacks=[note],
        progress=False,
    )
    means = {
        name: torch.tensordot(weights, torch.stack([step[name] for step in gradients]), 1)
        for name in gradients[0]
    }
    return Epoch(weights @ result.losses.double(), means, float(result.elbo))


def still(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """An optimizer that moves nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


def assert_same(batched: Epoch, full: Epoch) -> None:
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(batched.loss, full.loss, **close)
    torch.testing.assert_close(batched.gradients, full.gradients, **close)
    torch.testing.assert_close(batched.elbo, full.elbo, **close)


MAKERS = (normal_normal, mixture, autoencoder, encoded, local_parameters, autonormal)


@pytest.mark.parametrize("ours", [True, False], ids=["ELBO", "Pyro's"])
@pytest.mark.parametrize("plate", PLATES)
@pytest.mark.parametrize("make", MAKERS)
def test_batches_of_an_epoch_make_up_the_full_data(make, plate, ours):
    theirs = pyro.infer.TraceEnum_ELBO() if make is mixture else pyro.infer.Trace_ELBO()
    objective = ELBO(num_particles=2) if ours else theirs
    rows, pair = data(), make(PLATES[plate])
    full = one_epoch(pair, tuple(rows), objective, None)
    assert_same(one_epoch(pair, tuple(rows), objective, BATCH), full)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [normal_normal, mixture, autoencoder])
def test_every_form_of_data(make, form):
    rows, pair = data(), make(of_batch)
    full = one_epoch(pair, tuple(rows), ELBO(num_particles=2), None)
    batch_size = None if form == "DataLoader" else BATCH
    batched = one_epoch(pair, FORMS[form](rows), ELBO(num_particles=2), batch_size)
    assert_same(batched, full)


def test_score_function_gradients_are_scaled_once():
    rows, pair = data(), normal_normal(of_batch)
    objective = ScoreFunctionELBO(num_particles=3)
    full = one_epoch(pair, tuple(rows), objective, None)
    assert_same(one_epoch(pair, tuple(rows), objective, BATCH), full)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_scale_is_rows_over_the_rows_of_this_batch(drop_last):
    """-loss = log p(mean) + N / B sum log p(x_i | mean) - log q(mean), whatever the loader skips."""
    rows, (model, guide) = data(), normal_normal(of_batch)
    loader = DataLoader(TensorDataset(*rows), batch_size=BATCH, drop_last=drop_last)
    result = fit(
        model,
        guide,
        loader,
        objective=ELBO(num_particles=1, analytic=False),
        optimizer=still,
        steps=2 if drop_last else 3,
        progress=False,
    )
    torch.manual_seed(0)
    q = dist.Normal(torch.linspace(-1, 1, 6)[:3], 0.7).to_event(1)
    mean = q.sample()
    prior = dist.Normal(torch.zeros(3), 2.0).to_event(1).log_prob(mean) - q.log_prob(mean)
    likelihood = dist.Normal(mean, 1.5).to_event(1).log_prob(rows.x)
    bounds = [prior + N / len(part) * part.sum() for part in likelihood.split(BATCH)]
    expected = -torch.stack(bounds)[: len(result.losses)]
    torch.testing.assert_close(result.losses.double(), expected)


@pytest.mark.parametrize("guide", ["normal", AutoDelta])
def test_local_latents_of_ragged_batches_with_restarts(guide):
    """Each row has its own factor, which moves towards its own observation."""
    model, _ = local_parameters(subsampled)
    rows = Data(torch.linspace(-3, 3, N).unsqueeze(-1).expand(N, 3) + 0.0, torch.zeros(N, 2))
    result = fit(
        model, guide, tuple(rows), steps=200, batch_size=BATCH, restarts=2, seed=0, progress=False
    )
    local = result.sample(200)["z"]
    assert local.shape == (200, N, 2)
    means = local.mean(0)[:, 0]
    assert (means[:4] < 0).all() and (means[-4:] > 0).all()


@pytest.mark.parametrize("guide", ["normal", "delta", "multivariate_normal", "lowrank"])
def test_global_latents_of_ragged_batches(guide):
    model, _ = normal_normal(of_batch)
    result = fit(model, guide, tuple(data()), steps=4, batch_size=BATCH, progress=False)
    assert result.sample(2)["mean"].shape == (2, 3)


@pytest.mark.parametrize("rows", [N, N + 1])
def test_a_batch_of_all_rows_is_the_full_data(rows):
    pair, given = normal_normal(of_batch), tuple(data())
    full = one_epoch(pair, given, ELBO(num_particles=2), None)
    result = fit(
        *pair,
        given,
        objective=ELBO(num_particles=2),
        batch_size=rows,
        steps=1,
        progress=False,
    )
    torch.testing.assert_close(result.losses[0].double(), full.loss)
