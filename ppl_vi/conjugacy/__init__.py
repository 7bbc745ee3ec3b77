"""Moments, expected log-densities and coordinate ascent."""

from ppl_vi.conjugacy import discrete_densities as discrete_densities
from ppl_vi.conjugacy import gaussian_densities as gaussian_densities
from ppl_vi.conjugacy import positive_densities as positive_densities
from ppl_vi.conjugacy import positive_families as positive_families
from ppl_vi.conjugacy import transformed_densities as transformed_densities
from ppl_vi.conjugacy import wishart_family as wishart_family
from ppl_vi.conjugacy.analysis import analyse
from ppl_vi.conjugacy.ascent import Ascent, Weights
from ppl_vi.conjugacy.densities import certain, density, gaussian, mean_of, positive, summed
from ppl_vi.conjugacy.families import Factor, Family, Tensors, family
from ppl_vi.conjugacy.gaussian_family import GaussianFamily
from ppl_vi.conjugacy.kinds import Kind, kinds_of, remarks_on
from ppl_vi.conjugacy.sampled_family import SampledFamily, redrawn
from ppl_vi.conjugacy.starts import check_values, start
from ppl_vi.conjugacy.tables import Table
from ppl_vi.conjugacy.values import (
    MOVES,
    SPREADS,
    Law,
    NotConjugateError,
    Operation,
    Uncertain,
    rule,
)
from ppl_vi.program import LatentSite

__all__ = [
    "MOVES",
    "SPREADS",
    "Ascent",
    "Factor",
    "Family",
    "GaussianFamily",
    "Kind",
    "LatentSite",
    "Law",
    "NotConjugateError",
    "Operation",
    "SampledFamily",
    "Table",
    "Tensors",
    "Uncertain",
    "Weights",
    "analyse",
    "certain",
    "check_values",
    "density",
    "family",
    "gaussian",
    "kinds_of",
    "mean_of",
    "positive",
    "redrawn",
    "remarks_on",
    "rule",
    "start",
    "summed",
]
