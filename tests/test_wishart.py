"""Wishart draws, and the bijection by which guides reach positive definite matrices."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import biject_to, constraints

from ppl_vi import fit
from ppl_vi.distributions import PositiveDefiniteTransform, Wishart


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_the_bijection_and_its_determinant(dimension: int) -> None:
    transform = biject_to(constraints.positive_definite)
    assert isinstance(transform, PositiveDefiniteTransform)
    size = dimension * (dimension + 1) // 2
    x = torch.randn(3, size, dtype=torch.float64)
    matrix = transform(x)
    assert constraints.positive_definite.check(matrix).all()
    assert transform.forward_shape(x.shape) == matrix.shape
    assert transform.inverse_shape(matrix.shape) == x.shape
    torch.testing.assert_close(transform.inv(matrix), x)
    rows, columns = torch.tril_indices(dimension, dimension)
    for point, found in zip(x, transform.log_abs_det_jacobian(x, matrix), strict=True):
        entries = jacobian(lambda v: transform(v)[rows, columns], point)
        torch.testing.assert_close(found, torch.linalg.slogdet(entries)[1])


def test_draws_have_the_right_mean_and_do_not_warn() -> None:
    """Means of 4,000 draws within 4 standard errors, 3 comparisons."""
    scale = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    draws = Wishart(torch.tensor(5.0, dtype=torch.float64), scale).sample((4_000,))
    error = draws.std(0) / 4_000**0.5
    assert ((draws.mean(0) - 5 * scale).abs() < 4 * error).all()


@pytest.mark.slow
def test_a_gradient_guide_finds_a_wishart_posterior() -> None:
    """The bound is below the evidence, which is exact, by little; and the mean is the posterior's."""
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.randn(200, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        n, inverse = torch.tensor(3.0), torch.eye(2)

        def model(x: torch.Tensor) -> None:
            precision = pyro.sample("precision", Wishart(n, precision_matrix=inverse))
            with pyro.plate("data", len(x)):
                law = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
                pyro.sample("x", law, obs=x)

        result = fit(model, "multivariate_normal", x, steps=1_500, seed=0, progress=False)
        exact = Wishart(n + 200, precision_matrix=inverse + x.mT @ x)
        at = exact.mean
        evidence = (
            Wishart(n, precision_matrix=inverse).log_prob(at)
            + dist.MultivariateNormal(torch.zeros(2), precision_matrix=at).log_prob(x).sum()
            - exact.log_prob(at)
        )
        assert evidence - 0.1 < result.elbo < evidence + 4 * result.elbo.standard_error
        draws = result.sample(2_000)["precision"]
        assert ((draws.mean(0) / exact.mean - 1).abs() < 0.05).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_in_single_precision_are_symmetric() -> None:
    """However large, so that checks of the support take them."""
    scale = 1e-4 * torch.eye(8) + 1e-5
    wishart = Wishart(torch.tensor(40_000.0), precision_matrix=scale)
    drawn = wishart.sample((50,))
    assert torch.equal(drawn, drawn.mT)
    assert constraints.positive_definite.check(drawn).all()


def test_wide_matrices_in_single_precision_are_fitted() -> None:
    """Far from the start their rounded values are not positive definite."""

    def model(x: torch.Tensor) -> None:
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(12.0), torch.eye(10)))
        with pyro.plate("data", len(x)):
            zero = torch.zeros(10)
            pyro.sample("x", dist.MultivariateNormal(zero, precision_matrix=precision), obs=x)

    result = fit(model, "cavi", torch.randn(50, 10), seed=0, progress=False)
    assert result.guide.factors()["precision"].df.item() == pytest.approx(62.0)
