"""Whether formulas found in one place do well in others."""
