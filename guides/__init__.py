"""Pyro guides, and the names that ``fit`` knows them by."""

from ppl_vi.guides.cavi import CAVIGuide
from ppl_vi.guides.delta import DeltaGuide, LaplaceGuide
from ppl_vi.guides.encoder import EncoderGuide
from ppl_vi.guides.flow import FlowGuide
from ppl_vi.guides.gaussian import LowRankGuide, MultivariateNormalGuide, NormalGuide
from ppl_vi.guides.gmm import GMMGuide
from ppl_vi.guides.joint import JointGuide
from ppl_vi.guides.mixture import MixtureGuide
from ppl_vi.guides.refinement import Refinement
from ppl_vi.guides.structured import StructuredGuide

__all__ = [
    "CAVIGuide",
    "DeltaGuide",
    "EncoderGuide",
    "FlowGuide",
    "GMMGuide",
    "JointGuide",
    "LaplaceGuide",
    "LowRankGuide",
    "MixtureGuide",
    "MultivariateNormalGuide",
    "NormalGuide",
    "Refinement",
    "StructuredGuide",
]
