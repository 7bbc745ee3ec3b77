"""Pyro models, ready to fit."""

from ppl_vi.models.bernoulli_mixture import BernoulliMixture
from ppl_vi.models.conjugate_gmm import ConjugateGMM
from ppl_vi.models.factor_analysis import FactorAnalysis
from ppl_vi.models.gamma_poisson import GammaPoisson
from ppl_vi.models.gmm import BayesianGMM
from ppl_vi.models.hierarchical_normal import HierarchicalNormal
from ppl_vi.models.hmm import CategoricalHMM, GaussianHMM
from ppl_vi.models.lda import LatentDirichletAllocation, word_pairs
from ppl_vi.models.regression import BayesianLinearRegression
from ppl_vi.models.sticks import stick_breaking
from ppl_vi.models.vae import VAE

__all__ = [
    "VAE",
    "BayesianGMM",
    "BayesianLinearRegression",
    "BernoulliMixture",
    "CategoricalHMM",
    "ConjugateGMM",
    "FactorAnalysis",
    "GammaPoisson",
    "GaussianHMM",
    "HierarchicalNormal",
    "LatentDirichletAllocation",
    "stick_breaking",
    "word_pairs",
]
