"""Data sets for the demo and examples."""
