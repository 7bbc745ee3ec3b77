"""How one site's gradient is taken; one estimator a file."""

from ppl_vi.estimators.base import Baseline, Estimator
from ppl_vi.estimators.baselines import LeaveOneOut
from ppl_vi.estimators.choice import Estimators, choose_estimators
from ppl_vi.estimators.pathwise import Pathwise
from ppl_vi.estimators.score_function import ScoreFunction

__all__ = [
    "Baseline",
    "Estimator",
    "Estimators",
    "LeaveOneOut",
    "Pathwise",
    "ScoreFunction",
    "choose_estimators",
]
