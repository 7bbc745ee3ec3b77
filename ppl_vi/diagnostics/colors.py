"""The colours of all pictures."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442")
"""Told apart with any colour vision (Okabe and Ito 2008)."""
