"""How one site's gradient is taken; one estimator a file."""

from ppl_vi.estimators.base import Baseline, Estimator, Given
from ppl_vi.estimators.baselines import ControlVariate, LeaveOneOut, MovingAverage
from ppl_vi.estimators.choice import Estimators, automatic, named_estimators
from ppl_vi.estimators.disarm import DisARM
from ppl_vi.estimators.draws import Draws
from ppl_vi.estimators.enumerate import Enumerate
from ppl_vi.estimators.grid import Grid, Place
from ppl_vi.estimators.importance_sampled import ImportanceSampled
from ppl_vi.estimators.measure_valued import MeasureValued
from ppl_vi.estimators.neural_baseline import NeuralBaseline
from ppl_vi.estimators.pathwise import Pathwise
from ppl_vi.estimators.relax import Relax
from ppl_vi.estimators.score_function import ScoreFunction, detached_draw

__all__ = [
    "Baseline",
    "ControlVariate",
    "DisARM",
    "Draws",
    "Enumerate",
    "Estimator",
    "Estimators",
    "Given",
    "Grid",
    "ImportanceSampled",
    "LeaveOneOut",
    "MeasureValued",
    "MovingAverage",
    "NeuralBaseline",
    "Pathwise",
    "Place",
    "Relax",
    "ScoreFunction",
    "automatic",
    "detached_draw",
    "named_estimators",
]
