"""Guides that are fitted by exact updates, and sweeps of these: whole, on batches, or part by part."""
