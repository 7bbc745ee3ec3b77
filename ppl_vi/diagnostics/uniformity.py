"""Tests of ranks that should be uniform: is a posterior shifted, is it as wide as it should be."""

from __future__ import annotations

from typing import Any

import numpy as np

Ranks = np.ndarray[Any, Any]
"""``[simulations]``: where the truth lies among draws, between 0 and 1."""

_ORDER = 4


def symmetry_p(ranks: Ranks) -> float:
    """The p-value of ranks symmetric about 1/2: Wilcoxon's signed-rank test.

    It finds shifts, and passes a posterior that is too wide or too narrow about the right centre. Exact
    for up to 50 ranks. (Yao et al. compare ranks with their mirror images by Kolmogorov's distance,
    whose p-value takes these for independent, and which sees less.)

    Args:
        ranks: of the truth.

    Source: Wilcoxon (1945).
    """
    from scipy.stats import wilcoxon  # heavy, and not every fit needs it

    return float(wilcoxon(ranks - 0.5).pvalue)


def uniformity_p(ranks: Ranks) -> float:
    """The p-value of uniform ranks: Neyman's smooth test of order 4.

        Σ_j (1/√S Σ_s √(2j + 1) P_j(2 u_s - 1))²  ~  χ² with 4 degrees of freedom,  j = 1, ..., 4

    with Legendre polynomials P_j. The first sees shifts, the second widths, the others skewed and heavy
    tails. A Normal guide of half the variance is found from 200 ranks at a level of 0.005 with a power
    of 99.9 %, and by Kolmogorov's test with one of 42 %.

    Args:
        ranks: of the truth.

    Source: Neyman (1937); Rayner and Best (1990).
    """
    from scipy.stats import chi2

    basis = np.polynomial.legendre.legvander(2 * ranks - 1, _ORDER)[:, 1:]
    parts = np.sqrt(2 * np.arange(1, _ORDER + 1) + 1) * basis
    return float(chi2.sf((parts.sum(0) ** 2).sum() / len(ranks), _ORDER))
