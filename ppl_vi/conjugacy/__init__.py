"""Moments, expected log-densities and coordinate ascent."""

from ppl_vi.conjugacy import discrete_densities as discrete_densities
from ppl_vi.conjugacy import gaussian_densities as gaussian_densities
from ppl_vi.conjugacy import positive_densities as positive_densities
from ppl_vi.conjugacy import positive_families as positive_families
from ppl_vi.conjugacy import wishart_family as wishart_family
from ppl_vi.conjugacy.analysis import analyse
from ppl_vi.conjugacy.ascent import Ascent, Weights
from ppl_vi.conjugacy.families import Family, Tensors
from ppl_vi.conjugacy.gaussian_family import GaussianFamily
from ppl_vi.conjugacy.kinds import Kind, kinds_of
from ppl_vi.conjugacy.starts import start
from ppl_vi.conjugacy.values import NotConjugateError
from ppl_vi.program import LatentSite

__all__ = [
    "Ascent",
    "Family",
    "GaussianFamily",
    "Kind",
    "LatentSite",
    "NotConjugateError",
    "Tensors",
    "Weights",
    "analyse",
    "kinds_of",
    "start",
]
