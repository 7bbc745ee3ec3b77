"""Pyro guides, and the names that ``fit`` knows them by."""

from ppl_vi.guides import named as named
from ppl_vi.guides.cavi import CAVIGuide
from ppl_vi.guides.encoder import EncoderGuide
from ppl_vi.guides.gmm import GMMGuide
from ppl_vi.guides.refinement import Refinement

__all__ = ["CAVIGuide", "EncoderGuide", "GMMGuide", "Refinement"]
