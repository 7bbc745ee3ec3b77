"""Variational inference for Pyro programs.

Write a model in plain Pyro, call ``fit(model, guide, data)``, get a posterior with ArviZ diagnostics.
"""

from pathlib import Path

# Installed, the models and guides lie inside this package. In a checkout they stand beside it, and
# Python started in the checkout finds the package there first.
_here = Path(__file__).resolve().parent
if not (_here / "models").is_dir() and (_here.parent / "models" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

from ppl_vi.compilation import Execution
from ppl_vi.diagnostics import (
    Recommendation,
    gradient_variance,
    plot_gradient_variance,
    recommend_estimators,
)
from ppl_vi.diagnostics.calibration import Calibration, calibrate
from ppl_vi.diagnostics.pareto import KHat
from ppl_vi.errors import (
    CheckpointError,
    CompileError,
    DataError,
    GuideError,
    ModelError,
    RanksError,
)
from ppl_vi.estimate import Estimate
from ppl_vi.estimators import (
    Baseline,
    ControlVariate,
    DisARM,
    Enumerate,
    Estimator,
    ImportanceSampled,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    NeuralBaseline,
    Pathwise,
    Relax,
    ScoreFunction,
)
from ppl_vi.fitting import fit
from ppl_vi.objectives import (
    ELBO,
    Expectation,
    ForwardKL,
    ImportanceWeightedELBO,
    Objective,
    RenyiELBO,
    ReparameterizedELBO,
    ScoreFunctionELBO,
)
from ppl_vi.questions import LogEvidence, Marginal
from ppl_vi.registry import register_guide
from ppl_vi.result import FitResult
from ppl_vi.starts import GuideStart
from ppl_vi.stopping.reasons import Convergence, StopReason
from ppl_vi.training import Progress

__all__ = [
    "ELBO",
    "Baseline",
    "Calibration",
    "CheckpointError",
    "CompileError",
    "ControlVariate",
    "Convergence",
    "DataError",
    "DisARM",
    "Enumerate",
    "Estimate",
    "Estimator",
    "Execution",
    "Expectation",
    "FitResult",
    "ForwardKL",
    "GuideError",
    "GuideStart",
    "ImportanceSampled",
    "ImportanceWeightedELBO",
    "KHat",
    "LeaveOneOut",
    "LogEvidence",
    "Marginal",
    "MeasureValued",
    "ModelError",
    "MovingAverage",
    "NeuralBaseline",
    "Objective",
    "Pathwise",
    "Progress",
    "RanksError",
    "Recommendation",
    "Relax",
    "RenyiELBO",
    "ReparameterizedELBO",
    "ScoreFunction",
    "ScoreFunctionELBO",
    "StopReason",
    "calibrate",
    "fit",
    "gradient_variance",
    "plot_gradient_variance",
    "recommend_estimators",
    "register_guide",
]

# Guides enter the registry when they are imported, so they come after the engine.
from ppl_vi import guides as guides
from ppl_vi import models as models
