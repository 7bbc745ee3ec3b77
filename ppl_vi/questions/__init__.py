"""The questions that a fitted model answers."""

from ppl_vi.questions.draws import PosteriorDraws
from ppl_vi.questions.evidence import LogEvidence
from ppl_vi.questions.marginals import Marginal
from ppl_vi.questions.methods import Questions

__all__ = ["LogEvidence", "Marginal", "PosteriorDraws", "Questions"]
