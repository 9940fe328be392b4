"""Measured ratios: each benchmark times ours and a named rival in the same run."""
