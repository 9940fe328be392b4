"""Primitives of a value a unit: reductions of scores, and functions of profiles."""
