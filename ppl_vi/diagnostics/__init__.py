"""What a fitted posterior looks like from outside, and what its gradients cost."""

from ppl_vi.diagnostics.gradient_variance import gradient_variance
from ppl_vi.diagnostics.inference_data import inference_data, posterior_table
from ppl_vi.diagnostics.recommendation import Recommendation, recommend_estimators
from ppl_vi.diagnostics.variance_picture import plot_gradient_variance

__all__ = [
    "Recommendation",
    "gradient_variance",
    "inference_data",
    "plot_gradient_variance",
    "posterior_table",
    "recommend_estimators",
]
