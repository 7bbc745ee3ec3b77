"""What all rows share is computed once, and is the same to the bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppl_vi.compilation.capturing import Captured, capture
from ppl_vi.randomness import forked_rng

ROWS = 20_000
ROW = torch.nn.Parameter(torch.tensor([0.5, 1.7, 2.9]))
COLUMN = torch.linspace(0.1, 3.0, ROWS).unsqueeze(-1)
TABLE = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0))


def spread() -> Tensor:
    return ROW.exp().expand(ROWS, 3)


def density() -> Tensor:
    """A Normal density whose scale is shared, and its gradient."""
    scale = spread()
    found = (-((TABLE - 1.0) ** 2) / (2 * scale**2) - scale.log()).sum()
    (gradient,) = torch.autograd.grad(found, ROW)
    return torch.cat([found.detach().reshape(1), gradient])


def weights() -> Tensor:
    return (torch.log_softmax(spread(), -1) + TABLE).logsumexp(-1)


def summed() -> Tensor:
    return spread().log().sum(0) + torch.softmax(spread(), 1).flatten()[:3]


def of_two() -> Tensor:
    """Spread along different dimensions, then seen in another shape."""
    return ((spread().log() + COLUMN.expand(ROWS, 3).sin()) * 2.0).view(3, ROWS)


def beside_a_transposed_one() -> Tensor:
    """Which alone then says how the product is laid out."""
    product = spread().log() * TABLE.t().contiguous().t()
    return product.view(-1) + product.sum()


def changed_later() -> Tensor:
    own = spread().log()
    before = own + TABLE
    own[0] = 7.0
    return before + own * TABLE


def drawn() -> Tensor:
    return torch.bernoulli(torch.sigmoid(spread())) + torch.nn.functional.dropout(spread(), 0.5)


def along_the_spread() -> Tensor:
    return torch.softmax(ROW.detach().unsqueeze(0).t().expand(3, ROWS), -1)


def rounded_by_place() -> Tensor:
    """torch computes these in one way for whole vectors of the processor, in another for the rest."""
    wide = torch.sigmoid(COLUMN.expand(ROWS, 3)) + torch.nn.functional.softplus(
        ROW[0].expand(ROWS, 3)
    )
    return wide + TABLE.abs().pow(spread().reciprocal()) + torch.logaddexp(TABLE, spread().log())


def down_the_columns() -> Tensor:
    return torch.softmax(COLUMN[:4].expand(4, ROWS), 0)


def through_a_window() -> Tensor:
    """Whose two dimensions step alike."""
    window = torch.linspace(0.0, 1.0, ROWS + 2).unfold(0, ROWS, 1)
    return (ROW.unsqueeze(-1).expand(3, ROWS).log() + window).view(-1)


def captured(program: Callable[[], Tensor]) -> Captured:
    def differentiable() -> tuple[Tensor]:
        with torch.enable_grad():
            return (program().detach(),)

    return capture(differentiable, (ROW,))


PROGRAMS = [
    density,
    weights,
    summed,
    of_two,
    beside_a_transposed_one,
    changed_later,
    drawn,
    along_the_spread,
    rounded_by_place,
    down_the_columns,
    through_a_window,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_numbers_are_the_same(program: Callable[[], Tensor]) -> None:
    graph = captured(program)
    with forked_rng(seed=1), torch.enable_grad():
        expected = program()
    with forked_rng(seed=1):
        assert torch.equal(graph(ROW)[0], expected)


def sizes(graph: Captured, operation: str) -> list[int]:
    """Of the results of an operation."""
    nodes = graph.graph.graph.nodes
    return [node.meta["val"].shape.numel() for node in nodes if operation in str(node.target)]


def test_it_is_computed_once() -> None:
    assert sizes(captured(density), "aten.log.") == [3]
    assert sizes(captured(weights), "aten._log_softmax.") == [3]
    assert sizes(captured(summed), "aten.log.") == [3]
    assert sizes(captured(summed), "aten._softmax.") == [3]


def test_what_is_no_copy_is_computed_in_full() -> None:
    assert sizes(captured(along_the_spread), "aten._softmax.") == [3 * ROWS]
    assert sizes(captured(changed_later), "aten.log.") == [3 * ROWS]
    assert sizes(captured(drawn), "aten.bernoulli") == [3 * ROWS, 3 * ROWS]
