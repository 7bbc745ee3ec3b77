"""Which bound; one a file."""

from ppl_vi.objectives.base import BoundObjective, Objective
from ppl_vi.objectives.elbo import (
    ELBO,
    EvidenceLowerBound,
    ReparameterizedELBO,
    ScoreFunctionELBO,
)
from ppl_vi.objectives.expectation import Expectation
from ppl_vi.objectives.forward_kl import ForwardKL
from ppl_vi.objectives.importance_weighted import ImportanceWeightedELBO, RenyiELBO

__all__ = [
    "ELBO",
    "BoundObjective",
    "EvidenceLowerBound",
    "Expectation",
    "ForwardKL",
    "ImportanceWeightedELBO",
    "Objective",
    "RenyiELBO",
    "ReparameterizedELBO",
    "ScoreFunctionELBO",
]
