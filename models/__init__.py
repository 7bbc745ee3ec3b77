"""Pyro models, ready to fit."""

from ppl_vi.models.gmm import BayesianGMM

__all__ = ["BayesianGMM"]
