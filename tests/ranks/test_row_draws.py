"""Random operations of rows: each process draws what one alone would, and keeps its rows."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi.program.row_draws import Part, drawn_by_rows

PARTICLES, ROWS = 3, 7
HERE = torch.tensor([5, 1, 2])  # of a shuffled batch


def positive(*more: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(PARTICLES, ROWS, *more, generator=generator) + 0.5


A, B = positive(), positive(4)
SAMPLERS: dict[str, Callable[[Tensor], Any]] = {
    "Normal": lambda rows: dist.Normal(A[:, rows], 1.0),
    "Normal.to_event": lambda rows: dist.Normal(B[:, rows], 1.0).to_event(1),
    "masked": lambda rows: dist.Normal(A[:, rows], 1.0).mask(A[:, rows] > 1),
    "Categorical": lambda rows: dist.Categorical(B[:, rows]),
    "OneHotCategorical": lambda rows: dist.OneHotCategorical(B[:, rows]),
    "Bernoulli": lambda rows: dist.Bernoulli(A[:, rows] / 2),
    "Exponential": lambda rows: dist.Exponential(A[:, rows]),
    "Multinomial": lambda rows: dist.Multinomial(5, B[:, rows]),
    "LowRank": lambda rows: dist.LowRankMultivariateNormal(
        B[:, rows], B[:, rows, :, None], B[:, rows]
    ),
    "Mixture": lambda rows: dist.MixtureSameFamily(
        dist.Categorical(B[:, rows]), dist.Normal(B[:, rows], 1.0)
    ),
}
BY_PARAMETERS: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "Gamma": (lambda rows: dist.Gamma(A[:, rows], 1.0), A),
    "Dirichlet": (lambda rows: dist.Dirichlet(B[:, rows]), B),
    "Poisson": (lambda rows: dist.Poisson(A[:, rows]), A),
}


def drawn(make: Callable[[Tensor], Any], everyone: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The process's rows, and the random state after them."""

    def sum_(own: Tensor) -> Tensor:
        assert everyone is not None
        torch.testing.assert_close(own[:, HERE], everyone[:, HERE])
        return everyone

    torch.manual_seed(3)
    part, distribution = Part(HERE, ROWS, len(HERE), 0, sum_), make(HERE)
    return drawn_by_rows(part, distribution, -1, distribution), torch.get_rng_state()


def alone(make: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return make(torch.arange(ROWS))()[:, HERE], torch.get_rng_state()


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_are_those_that_one_process_would_draw(name: str) -> None:
    torch.testing.assert_close(drawn(SAMPLERS[name]), alone(SAMPLERS[name]), rtol=0, atol=0)


@pytest.mark.parametrize("name", BY_PARAMETERS)
def test_samplers_that_ask_for_as_many_numbers_as_parameters_say(name: str) -> None:
    make, everyone = BY_PARAMETERS[name]
    torch.testing.assert_close(drawn(make, everyone), alone(make), rtol=0, atol=0)


def test_a_sampler_that_cannot_be_followed_draws_by_process_and_keeps_generators_together() -> None:
    values, states = [], []
    for rank in range(2):
        torch.manual_seed(3)
        distribution = dist.VonMises(A[:, HERE], 2.0)
        part = Part(HERE, ROWS, len(HERE), rank, lambda own: own)
        values.append(drawn_by_rows(part, distribution, -1, distribution))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert not torch.isclose(*values).any()


def test_gradients_go_through_the_rows() -> None:
    leaf = A[:, HERE].clone().requires_grad_()
    torch.manual_seed(3)
    distribution = dist.Gamma(leaf, 1.0)
    part = Part(HERE, ROWS, len(HERE), 0, lambda own: A)
    drawn_by_rows(part, distribution, -1, distribution).sum().backward()
    everyone = A.clone().requires_grad_()
    torch.manual_seed(3)
    dist.Gamma(everyone, 1.0)().sum().backward()
    assert leaf.grad is not None and everyone.grad is not None
    torch.testing.assert_close(leaf.grad, everyone.grad[:, HERE])
