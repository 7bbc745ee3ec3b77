"""A categorical distribution for each element, all from one table."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class IndexedCategorical(TorchDistribution):
    """``Categorical(probs[rows])`` that never makes a row of probabilities for each element.

    p(v) = probs[rows, v]

    Words of topics, for example: a million words of 20,000 kinds would ask for 20 billion numbers.

    Args:
        probs: ``[K, V]``, each row of which sums to one.
        rows: ``[*batch]``, integers below K.

    Example:
        >>> import torch
        >>> from ppl_vi.distributions import IndexedCategorical
        >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> words = IndexedCategorical(probs, torch.tensor([0, 0, 1]))
        >>> words.log_prob(torch.tensor([0, 1, 1])).exp()
        tensor([0.9000, 0.1000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.simplex,
        "rows": constraints.nonnegative_integer,
    }

    def __init__(self, probs: Tensor, rows: Tensor, validate_args: bool | None = None) -> None:
        self.probs, self.rows = probs, rows
        super().__init__(rows.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers below V."""
        return constraints.integer_interval(0, self.probs.shape[-1] - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> IndexedCategorical:
        """With rows of another shape."""
        new: IndexedCategorical = self._get_checked_instance(IndexedCategorical, _instance)
        new.probs, new.rows = self.probs, self.rows.expand(batch_shape)
        super(IndexedCategorical, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """``[*batch]``."""
        if self._validate_args:
            self._validate_sample(value)
        found: Tensor = self.probs[self.rows, value.long()].log()
        return found

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """``[*sample_shape, *batch]``, drawn row by row of the table."""
        with torch.no_grad():
            rows = self.rows.expand(torch.Size(sample_shape) + self.batch_shape)
            drawn = torch.empty_like(rows, memory_format=torch.contiguous_format)
            for row in rows.unique().tolist():
                here = rows == row
                drawn[here] = self.probs[row].multinomial(int(here.sum()), replacement=True)
            return drawn
