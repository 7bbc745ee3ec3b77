"""The questions that a fitted model answers."""

from ppl_vi.questions.evidence import LogEvidence
from ppl_vi.questions.marginals import Marginal
from ppl_vi.questions.methods import Questions
from ppl_vi.questions.predictive import PredictiveDraws

__all__ = ["LogEvidence", "Marginal", "PredictiveDraws", "Questions"]
