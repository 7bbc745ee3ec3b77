"""Pyro guides, and the names that ``fit`` knows them by."""

from ppl_vi.guides.cavi import CAVIGuide
from ppl_vi.guides.delta import DeltaGuide, LaplaceGuide
from ppl_vi.guides.gaussian import LowRankGuide, MultivariateNormalGuide, NormalGuide
from ppl_vi.guides.gmm import GMMGuide
from ppl_vi.guides.joint import JointGuide

__all__ = [
    "CAVIGuide",
    "DeltaGuide",
    "GMMGuide",
    "JointGuide",
    "LaplaceGuide",
    "LowRankGuide",
    "MultivariateNormalGuide",
    "NormalGuide",
]
