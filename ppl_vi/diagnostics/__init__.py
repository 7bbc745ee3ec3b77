"""What a fitted posterior looks like from outside."""

from ppl_vi.diagnostics.inference_data import inference_data, posterior_table

__all__ = ["inference_data", "posterior_table"]
