"""Categories from the rows of one table."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import fit
from ppl_vi.distributions import IndexedCategorical

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
ROWS = torch.tensor([[0, 1], [1, 1], [0, 0]])


def test_it_is_the_categorical_of_the_rows() -> None:
    plain, indexed = dist.Categorical(PROBS[ROWS]), IndexedCategorical(PROBS, ROWS)
    value = plain.sample()
    torch.testing.assert_close(indexed.log_prob(value), plain.log_prob(value))
    wide = indexed.expand((4, 3, 2))
    assert wide.batch_shape == (4, 3, 2) and wide.log_prob(value).shape == (4, 3, 2)
    with pytest.raises(ValueError, match="support"):
        IndexedCategorical(PROBS, ROWS, validate_args=True).log_prob(value + 3)


def test_draws_have_the_right_shares() -> None:
    """4,000 draws, 18 comparisons at 4.5 standard errors: one false alarm in 8,000."""
    torch.manual_seed(0)
    draws = IndexedCategorical(PROBS, ROWS).sample((4_000,))
    assert draws.shape == (4_000, 3, 2)
    shares = torch.nn.functional.one_hot(draws, 3).double().mean(0)
    error = (PROBS * (1 - PROBS) / 4_000).sqrt()[ROWS]
    assert ((shares - PROBS[ROWS]).abs() < 4.5 * error).all()


@pytest.mark.parametrize("guide", ["cavi", "normal"])
def test_topics_are_fitted_as_with_the_categorical(guide: str) -> None:
    torch.manual_seed(1)
    document, word = torch.randint(6, (80,)), torch.randint(9, (80,))

    def topics(words_of: Any) -> Any:
        def model(document: Tensor, word: Tensor) -> None:
            with pyro.plate("topics", 3):
                phi = pyro.sample("phi", dist.Dirichlet(torch.full((9,), 9.0)))
            with pyro.plate("documents", 6):
                theta = pyro.sample("theta", dist.Dirichlet(torch.full((3,), 9.0)))
            with pyro.plate("tokens", len(word)):
                z = pyro.sample("z", dist.Categorical(theta[document]))
                pyro.sample("w", words_of(phi, z), obs=word)

        return model

    plain, indexed = (
        fit(topics(of), guide, (document, word), steps=6, seed=0, progress=False)
        for of in (lambda phi, z: dist.Categorical(phi[z]), IndexedCategorical)
    )
    torch.testing.assert_close(indexed.losses, plain.losses, rtol=1e-4, atol=1e-3)
