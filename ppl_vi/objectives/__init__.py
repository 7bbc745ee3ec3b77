"""Which bound; one a file."""

from ppl_vi.objectives.base import Objective
from ppl_vi.objectives.elbo import ELBO, EvidenceLowerBound, ReparameterizedELBO, ScoreFunctionELBO

__all__ = [
    "ELBO",
    "EvidenceLowerBound",
    "Objective",
    "ReparameterizedELBO",
    "ScoreFunctionELBO",
]
