"""Pyro's autoguides by name."""

from __future__ import annotations

from pyro.infer.autoguide import AutoDelta

from ppl_vi.registry import autoguide_builder, register_guide

register_guide("delta", autoguide_builder(AutoDelta))
