"""Pyro's autoguides by name."""

from __future__ import annotations

from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from ppl_vi.registry import autoguide_builder, register_guide

register_guide("normal", autoguide_builder(AutoNormal))
register_guide("delta", autoguide_builder(AutoDelta))
register_guide("multivariate_normal", autoguide_builder(AutoMultivariateNormal))
register_guide("lowrank", autoguide_builder(AutoLowRankMultivariateNormal))
